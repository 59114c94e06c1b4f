"""The judges by kind, and the oracle: the rule of a built-in task.

An oracle is a plain measure of the text in the direction of the user's preference group. It sees
one property of a text and nothing else: it cannot tell a true answer from a false one, or sense
from nonsense. It is therefore never used alone: empty and degenerate texts lose before it is asked
(see `comparisons.judge`), fluency is reported beside it, and so is how often it agrees with the
held-out choices of the data set's own users.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from prlhf.infra.errors import UserError
from prlhf.infra.io import read_json
from prlhf.judging.comparisons import Judge
from prlhf.params import JudgeParams
from prlhf.tasks import Task, built_in_tasks


@dataclass(frozen=True)
class JudgeContext:
    """What a judge can be built from; each reads only what it needs.

    Attributes:
        params: `judge.*` of `params.yaml`.
        methods: The methods whose answers are compared.
        seed: Of all random draws.
        prepared, reference, generated, scores: The directories of earlier stages' outputs.
    """

    params: JudgeParams
    methods: Sequence[str]
    seed: int
    prepared: Path
    reference: Path
    generated: Path
    scores: Path

    @property
    def oracle(self) -> Oracle | None:
        """The oracle of the data set; None if there is none."""
        return get_oracle(read_json(self.prepared / "dataset.json").get("task"))


@dataclass(frozen=True)
class Oracle(Judge):
    """A judge that knows the criterion of each group of a built-in task."""

    task: Task

    @property
    def name(self) -> str:
        """See `Judge`: the task's name."""
        return self.task.name

    @property
    def description(self) -> str:
        """See `Judge`."""
        return self.task.oracle

    def knows(self, questions: pd.DataFrame) -> NDArray[np.bool_]:
        """See `Judge`: the groups that have a criterion."""
        return questions["group"].isin(self.task.groups).to_numpy(dtype=bool)

    def verdicts(self, questions: pd.DataFrame) -> pd.DataFrame:
        """See `Judge`."""
        sides = (list(questions[column]) for column in ("first", "second", "group"))
        return pd.DataFrame({"verdict": pd.array(self.compare(*sides), dtype="Int8")})

    def compare(
        self, first: Sequence[str], second: Sequence[str], groups: Sequence[str]
    ) -> NDArray[np.int8]:
        """1 where the group prefers the first text, -1 where the second, 0 where neither.

        Raises:
            KeyError: A group without a criterion.
        """
        # Generic answers are compared once for every user: measure each text once.
        measure = cache(lambda measured, text: measured(text))
        verdicts = np.zeros(len(groups), dtype=np.int8)
        for row, (one, other, group) in enumerate(zip(first, second, groups, strict=True)):
            criterion = self.task.groups[group].criterion
            difference = measure(criterion.measure, one) - measure(criterion.measure, other)
            gap = criterion.sign * difference
            if abs(gap) > criterion.tolerance:
                verdicts[row] = 1 if gap > 0 else -1
        return verdicts


def get_oracle(task: str | None) -> Oracle | None:
    """The oracle of a data set that comes from this built-in task; None if there is none."""
    known = built_in_tasks().get(task or "")
    return None if known is None else Oracle(known)


def _oracle(context: JudgeContext) -> Judge:
    oracle = context.oracle
    if oracle is None:
        key = "judge.also" if "oracle" in context.params.also else "judge.kind"
        raise UserError(
            "this data set has no oracle, because what its users prefer is not known",
            where=f"params.yaml: {key}",
            fix="choose feature_reward, reward_model, llm or none",
        )
    return oracle


# The other judges' modules are imported when they are asked for: reward models need PyTorch.


def _feature_reward(context: JudgeContext) -> Judge:
    from prlhf.judging.reward import FeatureRewardJudge

    return FeatureRewardJudge.build(context)


def _reward_model(context: JudgeContext) -> Judge:
    from prlhf.judging.reward import RewardModelJudge

    params = context.params.reward_model
    return RewardModelJudge.read(context.scores / f"reward_{params.method}", params.tie)


def _llm(context: JudgeContext) -> Judge:
    from prlhf.judging.llm_judge import LlmJudge

    return LlmJudge.build(context)


JUDGES: Mapping[str, Callable[[JudgeContext], Judge]] = {
    "oracle": _oracle,
    "feature_reward": _feature_reward,
    "reward_model": _reward_model,
    "llm": _llm,
}
"""How to build a judge, by its kind. A new kind also needs its section in `JudgeParams`."""


def build_judges(context: JudgeContext) -> dict[str, Judge]:
    """The judges of `judge.kind` and `judge.also` by kind, the one that counts first.

    Raises:
        UserError: One of them does not fit the data set.
    """
    kind, also = context.params.kind, context.params.also
    if kind == "auto":
        kind = "none" if context.oracle is None else "oracle"
        if kind == "none" and also:
            raise UserError(
                "this data set has no oracle, so that auto means no judge, and no other can be "
                "asked beside it",
                where="params.yaml: judge.also",
                fix="name one of them in judge.kind",
            )
    return {one: JUDGES[one](context) for one in dict.fromkeys([kind, *also]) if one != "none"}

"""Reward models as judges: fitted here on fixed features, or trained in a stage of its own.

A judge must not have learned from what it judges, nor, if possible, from what the judged models
were trained on: it would repeat their mistakes and call them right. For `FeatureRewardJudge`, test
prompts are therefore dealt into folds, and a prompt is judged by a model fitted to

- the users' test pairs about prompts of other folds, and their validation pairs, neither of which
  the judged models were trained on;
- all pairs of users held out of training, except those about prompts of the same fold;
- if asked for, the training pairs, too.

Its verdicts on held-out choices are therefore as honest as those on generated answers, and how many
of them it gets right says how far to trust it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from prlhf.data import ROUNDING, agreement, index_users
from prlhf.data.ids import shuffled
from prlhf.data.reference import load_reference, read_pairs, text_key
from prlhf.infra.errors import UserError
from prlhf.infra.io import read_json, read_parquet
from prlhf.judging.judges import JudgeContext
from prlhf.params import FeatureRewardJudgeParams
from prlhf.people.features import Examples
from prlhf.people.hierarchical import HierarchicalReward, fit_hierarchical

CHOSEN = ["user_id", "prompt", "chosen", "rejected"]
"""Columns of the pairs that are learned from."""


@dataclass(frozen=True)
class RewardJudge(ABC):
    """A judge by a personalised reward r(x, y, u); see `comparisons.Judge`.

    Attributes:
        tie: How far a probability of winning may be from 0.5 and still be a tie.
        about: What the reward model learned from, for judge.json.
    """

    tie: float
    about: Mapping[str, Any]
    name: ClassVar[str]
    column: ClassVar[str]

    @abstractmethod
    def knows(self, questions: pd.DataFrame) -> NDArray[np.bool_]:
        """See `Judge`: the users that the reward model learned, from pairs about other prompts."""

    @abstractmethod
    def log_odds(self, questions: pd.DataFrame) -> NDArray[np.float64]:
        """Log-odds that users take the first answer rather than the second, `[questions]`.

        NaN for users that are not known.
        """

    def verdicts(self, questions: pd.DataFrame) -> pd.DataFrame:
        """See `Judge`; also, in `column`, the probability that the first answer wins."""
        # As a hyperbolic tangent, the logistic function does not overflow.
        odds = self.log_odds(questions)
        probability = 0.5 + 0.5 * np.tanh(odds / 2)
        decided = np.abs(probability - 0.5) > self.tie
        verdict = np.where(decided, 2 * agreement(odds, ROUNDING) - 1, 0).astype(np.int8)
        return pd.DataFrame({"verdict": pd.array(verdict, dtype="Int8"), self.column: probability})

    def report(self) -> dict[str, Any]:
        """See `Judge`: `about`."""
        return dict(self.about)


@dataclass(frozen=True)
class Features:
    """Mean hidden states of texts under the base model.

    Attributes:
        rows: Row of `values` by `text_key(prompt, response)`.
        values: float16 or float32 [N, d].
    """

    rows: Mapping[str, int]
    values: torch.Tensor

    def rows_of(self, prompts: Iterable[str], texts: Iterable[str]) -> NDArray[np.int64]:
        """Rows of responses, int64 [n]."""
        return np.array([self.rows[key] for key in map(text_key, prompts, texts)], dtype=np.int64)

    def __or__(self, other: Features) -> Features:
        """Both together; a text in both has the features of `other`."""
        start = len(self.values)
        rows = dict(self.rows) | {key: start + row for key, row in other.rows.items()}
        return Features(rows, torch.cat([self.values, other.values]))


class Fold(NamedTuple):
    """A reward fitted without the prompts of a fold, and the index of each user by id, from 1."""

    reward: HierarchicalReward
    users: Mapping[str, int]


@dataclass(frozen=True)
class FeatureRewardJudge(RewardJudge):
    """A reward on the base model's features, cross-fitted by prompt.

    What is not known of a user draws the probability of winning to one half.

    Attributes:
        features: Of every text that is judged.
        fold_of: The number of each prompt's fold.
        folds: The folds.
    """

    features: Features
    fold_of: Mapping[str, int]
    folds: Sequence[Fold]
    name: ClassVar[str] = "reward model"
    description: ClassVar[str] = (
        "A personalised reward model compared the answers. It learned each user from held-out "
        "choices about other prompts, and sees only what a linear reading of the base model's "
        "hidden states shows."
    )
    column: ClassVar[str] = "probability"

    @classmethod
    def build(cls, context: JudgeContext) -> FeatureRewardJudge:
        """Fit it to the held-out choices of a run."""
        params = context.params.feature_reward
        reference = load_reference(context.reference)
        features = Features(reference.rows, reference.features)
        prompts = set(read_pairs(context.prepared, context.reference, "test", ["prompt"])["prompt"])
        for name in context.methods:
            generated = read_parquet(context.generated / f"{name}.parquet", ["prompt", "text"])
            prompts |= set(generated["prompt"])
            keys = map(text_key, generated["prompt"], generated["text"])
            values = load_file(str(context.scores / name / "features.safetensors"))["features"]
            # What the reference has already keeps its features.
            features = Features({key: row for row, key in enumerate(keys)}, values) | features
        splits = ["validation", "test", "unseen", *(["train"] if params.pairs == "all" else [])]
        tables = [read_pairs(context.prepared, context.reference, name, CHOSEN) for name in splits]
        pairs = pd.concat(tables, ignore_index=True)
        about = {"pairs": len(pairs), "splits": splits, "users": pairs["user_id"].nunique()}
        return cls.fit(pairs, sorted(prompts), features, params, context.seed, about)

    @classmethod
    def fit(
        cls,
        pairs: pd.DataFrame,
        prompts: Sequence[str],
        features: Features,
        params: FeatureRewardJudgeParams,
        seed: int,
        about: Mapping[str, Any],
    ) -> FeatureRewardJudge:
        """Fit a model for each fold of the prompts that are to be judged.

        Args:
            pairs: `CHOSEN` of all pairs that may be learned from.
            prompts: The prompts to be judged, distinct.
            features: Of the pairs and of the answers to be judged.
            params: `judge.feature_reward.*` of `params.yaml`.
            seed: Of the folds and the fits.
            about: For judge.json; the number of folds is added.

        Raises:
            UserError: There are no pairs to fit one of the models to.
        """
        order = shuffled(prompts, seed, "judge folds")
        fold_of = {prompt: place % params.folds for place, prompt in enumerate(order)}
        place = pairs["prompt"].map(fold_of).fillna(-1).to_numpy()
        folds = []
        for number in range(min(params.folds, len(order))):
            table = pairs[place != number]
            if table.empty:
                raise UserError(
                    "there are no pairs about other prompts to fit a reward model to",
                    where="params.yaml: judge.kind",
                    fix="choose another judge, or a larger split.test or split.validation",
                )
            users = index_users(sorted(set(table["user_id"])))
            examples = Examples(
                features.values,
                features.rows_of(table["prompt"], table["chosen"]),
                features.rows_of(table["prompt"], table["rejected"]),
                table["user_id"].map(users).to_numpy(np.int64),
                pd.factorize(table["prompt"])[0].astype(np.int64)[:, None],
                np.ones(len(table)),
            )
            reward, _ = fit_hierarchical(examples, len(users), clusters=1, seed=seed, control=False)
            folds.append(Fold(reward, users))
        return cls(params.tie, {"folds": len(folds), **about}, features, fold_of, folds)

    def knows(self, questions: pd.DataFrame) -> NDArray[np.bool_]:
        found = [
            prompt in self.fold_of and user in self.folds[self.fold_of[prompt]].users
            for user, prompt in zip(questions["user_id"], questions["prompt"], strict=True)
        ]
        return np.array(found, dtype=bool)

    def log_odds(self, questions: pd.DataFrame) -> NDArray[np.float64]:
        odds = np.full(len(questions), np.nan)
        known = self.knows(questions)
        place = questions["prompt"].map(self.fold_of)
        for number, fold in enumerate(self.folds):
            rows = known & (place == number).to_numpy()
            if rows.any():
                asked = questions[rows]
                first, second = (
                    self.features.values[self.features.rows_of(asked["prompt"], asked[side])]
                    for side in ("first", "second")
                )
                users = torch.tensor([fold.users[user] for user in asked["user_id"]])
                odds[rows] = fold.reward.log_odds(first, second, users).double().numpy()
        return odds


@dataclass(frozen=True)
class RewardModelJudge(RewardJudge):
    """A reward model on the language model, by the rewards that `score_rewards` wrote.

    Differences between rewards of answers to one prompt are log-odds.

    Attributes:
        values: Reward by user id and `text_key`.
        users: The users that the reward model knows.
        place: Where the rewards are from, for error messages.
    """

    values: Mapping[tuple[str, str], float]
    users: frozenset[str]
    place: Path
    name: ClassVar[str] = "trained reward model"
    column: ClassVar[str] = "probability_trained"

    @property
    def description(self) -> str:
        """See `Judge`."""
        learned = {
            "held_out": "held-out choices about other prompts, which the judged models were not "
            "trained on.",
            "train": "the very choices that the judged models were trained on, and may share their "
            "mistakes.",
        }[self.about["learned_from"]]
        return (
            "A personalised reward model on the language model itself compared the answers. It "
            f"learned each user from {learned}"
        )

    @classmethod
    def read(cls, folder: Path, tie: float) -> RewardModelJudge:
        """Read the rewards in `data/scores/reward_<name>/`.

        Raises:
            UserError: They are not there.
        """
        place = folder / "rewards.parquet"
        table = read_parquet(place, ["user_id", "text", "reward"])
        keys = zip(table["user_id"], table["text"], strict=True)
        values = dict(zip(keys, table["reward"].tolist(), strict=True))
        about = read_json(folder / "about.json")
        return cls(tie, about, values, frozenset(table["user_id"]), place)

    def knows(self, questions: pd.DataFrame) -> NDArray[np.bool_]:
        return questions["user_id"].isin(self.users).to_numpy(dtype=bool)

    def log_odds(self, questions: pd.DataFrame) -> NDArray[np.float64]:
        first, second = (self._rewards(questions, side) for side in ("first", "second"))
        return first - second

    def _rewards(self, questions: pd.DataFrame, side: str) -> NDArray[np.float64]:
        texts = map(text_key, questions["prompt"], questions[side])
        keys = zip(questions["user_id"], texts, strict=True)
        found = [self.values.get(key) if key[0] in self.users else np.nan for key in keys]
        if None in found:
            raise UserError(
                "is not about the answers there are now",
                where=self.place,
                fix="`dvc repro` makes it anew",
            )
        return np.array(found, dtype=np.float64)

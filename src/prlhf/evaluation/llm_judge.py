"""A language model as judge: told what a user wants, it compares two answers in both orders.

Judges prefer what is shown first, or second (Zheng et al., 2023, arXiv:2306.05685). Each
comparison is therefore asked twice with the answers exchanged; a verdict that changes with the
order is a tie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from prlhf.evaluation.llm_client import Client, Endpoint
from prlhf.evaluation.llm_prompts import (
    CORRECTION,
    CRITERIA,
    Answer,
    Choice,
    criterion,
    profile,
    question,
    read_answer,
)
from prlhf.io import content_hash

if TYPE_CHECKING:
    import pandas as pd

Context = Literal["auto", "criteria", "profile"]

FIRST: Final = {"A": 1, "B": -1, "tie": 0}
"""What a winner means where the first answer is shown as A."""

SAID: Final = {1: "first", -1: "second", 0: "tie", None: None}


@dataclass(frozen=True)
class Users:
    """What the judge may be told of users.

    Attributes:
        context: See `judge.llm.context` in `params.yaml`.
        criteria: What users of each group want.
        profiles: What each user, by id, has said and chosen.
    """

    context: Context
    criteria: Mapping[str, str]
    profiles: Mapping[str, str]

    def about(self, user_id: str, group: object) -> str:
        """What the judge is told of a user; nothing where nothing is known."""
        wanted = self.criteria.get(str(group), "") if self.context != "profile" else ""
        if wanted or self.context == "criteria":
            return criterion(wanted) if wanted else ""
        return self.profiles.get(user_id, "")


def known_users(
    users: pd.DataFrame,
    pairs: pd.DataFrame,
    *,
    context: Context,
    criteria: Mapping[str, str],
    examples: int,
    limit: int,
    seed: int,
) -> Users:
    """Collect what is known of each user.

    Args:
        users: `user_id`, and `user_text` if there is any.
        pairs: Pairs of these users about prompts that are not judged.
        context: See `Users`.
        criteria: By group, besides the built-in ones.
        examples: Pairs shown of a user at most, drawn by a hash of `seed` and the pair.
        limit: Characters of a text in them.
        seed: Of the draw.
    """
    known = dict(CRITERIA) | dict(criteria)
    if context == "criteria":
        return Users(context, known, {})
    texts = (
        dict(zip(users["user_id"], users["user_text"], strict=True)) if "user_text" in users else {}
    )
    ranks = [content_hash(str(seed), "judge examples", pair) for pair in pairs["pair_id"]]
    drawn = pairs.assign(rank=ranks).sort_values("rank").groupby("user_id").head(examples)
    choices: dict[str, list[Choice]] = {}
    for user, *texts_of_pair in zip(
        *(drawn[name] for name in ("user_id", "prompt", "chosen", "rejected")), strict=True
    ):
        choices.setdefault(user, []).append(Choice(*texts_of_pair))
    profiles = {}
    for user in users["user_id"]:
        text = texts.get(user)
        profiles[user] = profile(
            text if isinstance(text, str) else None, choices.get(user, []), limit
        )
    return Users(context, known, profiles)


def combine(forward: int | None, backward: int | None) -> int | None:
    """The verdict of both orders, each 1, 0, -1 in favour of the first answer, or None.

    Disagreement is a tie; where one of them could not be read, there is no verdict.
    """
    if forward is None or backward is None:
        return None
    return forward if forward == backward else 0


@dataclass
class LlmJudge:
    """See `judges.Judge`. Counts what it did, for judge.json."""

    client: Client[Answer]
    users: Users
    seen: dict[str, int] = field(default_factory=dict)

    @classmethod
    def at(cls, endpoint: Endpoint, users: Users) -> LlmJudge:
        """A judge behind an endpoint."""
        return cls(Client(endpoint, read_answer, CORRECTION), users)

    @property
    def name(self) -> str:
        return self.client.endpoint.model

    @property
    def description(self) -> str:
        told = {
            "criteria": "what users of the group want",
            "profile": "what the user has said and chosen earlier",
            "auto": "what users of the group want, or else what the user has said and chosen "
            "earlier",
        }[self.users.context]
        return (
            f"The language model {self.name} compared the answers, told {told}. It saw each pair "
            "in both orders, and a verdict that changed with the order counts as a tie. Such "
            "judges tend to favour long answers and texts like their own."
        )

    def knows(self, questions: pd.DataFrame) -> NDArray[np.bool_]:
        """See `Judge`: users whose group has a criterion, or who have said or chosen something."""
        return np.array([bool(about) for about in self._about(questions)], dtype=bool)

    def verdicts(self, questions: pd.DataFrame) -> pd.DataFrame:
        """See `Judge`; also `forward` and `reversed`, the verdict in each order, and `reason`.

        `forward` and `reversed` are "first", "second" or "tie", whichever was shown as A, and
        missing where no reply could be read.

        Raises:
            UserError: See `Client.ask`.
        """
        import pandas as pd

        sides = ("prompt", "first", "second")
        texts = list(zip(*(list(questions[name]) for name in sides), strict=True))
        asked = [
            question(about, prompt, a, b)
            for about, (prompt, first, second) in zip(self._about(questions), texts, strict=True)
            for a, b in ((first, second), (second, first))
        ]
        answers = self.client.ask(asked, "judge")
        forward = [FIRST[one.winner] if one else None for one in answers[::2]]
        backward = [-FIRST[one.winner] if one else None for one in answers[1::2]]
        verdicts = [combine(*both) for both in zip(forward, backward, strict=True)]
        self._count(answers, forward, backward)
        return pd.DataFrame(
            {
                "verdict": pd.array(verdicts, dtype="Int8"),
                "forward": pd.array([SAID[one] for one in forward], dtype="str"),
                "reversed": pd.array([SAID[one] for one in backward], dtype="str"),
                "reason": pd.array(
                    [one.reason if one else None for one in answers[::2]], dtype="str"
                ),
            }
        )

    def report(self) -> dict[str, Any]:
        """Counts, tokens and cost, for judge.json."""
        endpoint, usage = self.client.endpoint, self.client.usage
        return {
            "model": endpoint.model,
            "base_url": endpoint.base_url,
            "context": self.users.context,
            "comparisons": dict(self.seen),
            "requests": usage.requests,
            "unreadable_questions": self.client.unreadable,
            "tokens": {"input": usage.input_tokens, "output": usage.output_tokens},
            "cost": round(usage.cost(endpoint), 6),
        }

    def _about(self, questions: pd.DataFrame) -> list[str]:
        return [
            self.users.about(user, group)
            for user, group in zip(questions["user_id"], questions["group"], strict=True)
        ]

    def _count(
        self,
        answers: Sequence[Answer | None],
        forward: Sequence[int | None],
        backward: Sequence[int | None],
    ) -> None:
        both = list(zip(forward, backward, strict=True))
        readable = [pair for pair in both if None not in pair]
        counts = {
            "asked": len(both),
            "same_in_both_orders": sum(one == other for one, other in readable),
            "without_verdict": len(both) - len(readable),
            "shown_first_won": sum(one is not None and one.winner == "A" for one in answers),
            "shown_second_won": sum(one is not None and one.winner == "B" for one in answers),
        }
        for name, count in counts.items():
            self.seen[name] = self.seen.get(name, 0) + count

"""A trained reward model as judge, by the rewards that it gave in a stage of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prlhf.errors import UserError
from prlhf.evaluation.reward_judge import RewardJudge
from prlhf.evaluation.rewarded import ABOUT, REWARDS
from prlhf.io import read_json, read_parquet
from prlhf.training.reference_files import text_key

_LEARNED = {
    "held_out": "It learned each user from held-out choices about other prompts, which the judged "
    "models were not trained on.",
    "train": "It learned each user from the very choices that the judged models were trained on, "
    "and may share their mistakes.",
}


@dataclass(frozen=True)
class Rewards:
    """A `reward_judge.Scorer` that looks rewards up.

    Attributes:
        values: Reward by user id and `text_key`.
        users: The users that the reward model knows.
        place: Where they are from, for error messages.
    """

    values: Mapping[tuple[str, str], float]
    users: frozenset[str]
    place: Path

    def __call__(
        self, users: Sequence[str], prompts: Sequence[str], answers: Sequence[str]
    ) -> NDArray[np.float64]:
        """See `Scorer`.

        Raises:
            UserError: An answer has no reward.
        """
        keys = zip(users, map(text_key, prompts, answers), strict=True)
        found = [self.values.get(key) if key[0] in self.users else np.nan for key in keys]
        if None in found:
            raise UserError(
                "is not about the answers there are now",
                where=self.place,
                fix="`dvc repro` makes it anew",
            )
        return np.array(found, dtype=np.float64)

    def knows(self, users: Sequence[str], prompts: Sequence[str]) -> NDArray[np.bool_]:
        """See `Scorer`."""
        return np.array([user in self.users for user in users], dtype=bool)


def trained_judge(folder: Path, tie: float) -> RewardJudge:
    """The judge whose rewards are in a folder.

    Args:
        folder: Holds `REWARDS` and `ABOUT`.
        tie: See `RewardJudge`.

    Raises:
        UserError: They are not there.
    """
    table = read_parquet(folder / REWARDS, ["user_id", "text", "reward"])
    about: dict[str, Any] = read_json(folder / ABOUT)
    keys = zip(table["user_id"], table["text"], strict=True)
    values = dict(zip(keys, table["reward"].tolist(), strict=True))
    return RewardJudge(
        Rewards(values, frozenset(table["user_id"]), folder / REWARDS),
        tie,
        about,
        name="trained reward model",
        description="A personalised reward model on the language model itself compared the "
        f"answers. {_LEARNED[about['learned_from']]}",
        column="probability_trained",
    )

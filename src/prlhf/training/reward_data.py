"""What a reward model learns from, and what it is tested on.

A reward model that is to judge must have learned from nothing that the judged models were trained
on, or it repeats their mistakes and calls them right; and never from a prompt that it judges, which
are those of the test side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prlhf.data.contract import GENERIC_INDEX
from prlhf.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Division:
    """The prepared pairs as a reward model uses them, each with the model's own `user_index`.

    Attributes:
        learned: Pairs to train on.
        watched: Pairs to follow the training with.
        test: Pairs of known users about test prompts.
        unseen: Such pairs of users that it does not know.
        users: Ids of the known users in index order; None for the seen users and their indices.
    """

    learned: pd.DataFrame
    watched: pd.DataFrame
    test: pd.DataFrame
    unseen: pd.DataFrame
    users: Sequence[str] | None = None


def divide(tables: Mapping[str, pd.DataFrame], pairs: str) -> Division:
    """Divide the prepared tables.

    Args:
        tables: Prepared pairs: train, validation, test, unseen.
        pairs: `train`: learn from what the methods are trained on, know the seen users. `held_out`:
            learn from validation pairs, and from unseen users' pairs about other than test
            prompts; know the users of these, unseen ones too; watch the training pairs.

    Raises:
        UserError: There is nothing held out to learn from and to be tested on.
    """
    unseen = tables["unseen"]
    on_test = unseen["prompt_split"] == "test"
    if pairs == "train":
        return Division(tables["train"], tables["validation"], tables["test"], unseen[on_test])

    import pandas as pd

    learned = pd.concat([tables["validation"], unseen[~on_test]], ignore_index=True)
    users = sorted(set(learned["user_id"]))
    index = {user: number for number, user in enumerate(users, GENERIC_INDEX + 1)}

    def numbered(table: pd.DataFrame) -> pd.DataFrame:
        found = table["user_id"].map(index).fillna(GENERIC_INDEX).astype("int64")
        return table.assign(user_index=found)

    asked = numbered(pd.concat([tables["test"], unseen[on_test]], ignore_index=True))
    known = asked["user_index"] != GENERIC_INDEX
    if not known.any():
        raise UserError(
            "no user has held-out pairs both to learn from and to be tested on",
            where="params.yaml: train_reward_model.pairs",
            fix="choose train, or a larger split.validation",
        )
    return Division(
        numbered(learned), numbered(tables["train"]), asked[known], asked[~known], users
    )

"""Who and what is held out: splits by prompt, and users unseen as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from prlhf.data.contract import (
    GENERIC_INDEX,
    PAIR_COLUMNS,
    SPLITS,
    USER_COLUMNS,
)
from prlhf.data.randomness import shuffled
from prlhf.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from prlhf.params import SplitParams

NAMED: Final = 5
"""How many users a note names."""


@dataclass(frozen=True)
class Prepared:
    """Pairs ready for training and evaluation.

    Attributes:
        pairs: All of them, in source order: `contract.PAIR_COLUMNS`, `prompt_split` (the side of
            the prompt) and `split` (the same, or "unseen" for an unseen user's pair).
        users: `contract.USER_COLUMNS`, one row each, sorted by `user_id`.
        notes: What a reader of the results should know about how it came out.
    """

    pairs: pd.DataFrame
    users: pd.DataFrame
    notes: list[str] = field(default_factory=list)

    def part(self, name: str) -> pd.DataFrame:
        """The table of one split: train, validation, test or unseen."""
        found = self.pairs[self.pairs["split"] == name].reset_index(drop=True)
        extra = ["prompt_split"] if name == "unseen" else []
        return found[[*PAIR_COLUMNS, *extra]]


def split(rows: pd.DataFrame, *, seed: int, shares: SplitParams) -> Prepared:
    """Split usable rows by prompt, and set unseen users apart.

    Prompts and users are ordered by a hash of the seed and themselves, so that rows which come or
    go leave most others on their side. Prompts that seen users judged are split first, the rest by
    the same shares: every split of seen users gets its share however few prompts there are. A data
    set that brings its own test side keeps it, and gives up some of the rest for validation.

    Args:
        rows: Usable rows with `pair_id` and `prompt_id`; `contract.SPLIT_COLUMNS` if they have any.
        seed: The run's seed.
        shares: The `split` section.

    Raises:
        UserError: There are too few prompts or users for the shares asked for.
    """
    notes: list[str] = []
    unseen = _unseen_users(rows, seed, shares.unseen_users)
    of_unseen = rows["user_id"].isin(unseen)
    if "side" in rows:
        prompt_split = _own_sides(rows, of_unseen, seed, shares, notes)
    else:
        sides = _sides(rows.loc[~of_unseen, "prompt_id"].unique(), seed, shares)
        _require_sides(sides, shares)
        others = set(rows["prompt_id"].unique()) - sides.keys()
        sides |= _sides(others, seed, shares)
        prompt_split = rows["prompt_id"].map(sides)

    trained = set(rows.loc[~of_unseen & (prompt_split == "train"), "user_id"].unique())
    untrained = sorted(set(rows["user_id"].unique()) - trained - unseen)
    if untrained:
        some = ", ".join(untrained[:NAMED]) + (", ..." if len(untrained) > NAMED else "")
        notes.append(f"users without a training prompt count as unseen ({len(untrained)}): {some}")
    seen_row = rows["user_id"].isin(trained)
    pairs = rows.assign(prompt_split=prompt_split, split=prompt_split.where(seen_row, "unseen"))
    for name in SPLITS:
        if (name != "validation" or shares.validation) and not (pairs["split"] == name).any():
            raise UserError(
                f"no pair of a seen user is on a {name} prompt",
                where="params.yaml: split",
                fix="more pairs per user, or another split",
            )
    index = {user: number for number, user in enumerate(sorted(trained), GENERIC_INDEX + 1)}
    pairs["user_index"] = pairs["user_id"].map(index).fillna(GENERIC_INDEX).astype("int64")
    return Prepared(pairs[[*PAIR_COLUMNS, "prompt_split", "split"]], _users(pairs, index), notes)


def _unseen_users(rows: pd.DataFrame, seed: int, share: float) -> set[str]:
    """The data set's own unseen users if it marks any user at all, else a random share.

    At least one user when a share is asked for, but two remain seen where there are two.
    """
    marked = rows["unseen"].notna()
    if marked.any():
        unseen = set(rows.loc[rows["unseen"].fillna(False).astype(bool), "user_id"].unique())
        if unseen == set(rows["user_id"].unique()):
            raise UserError("the data set marks all of its users as unseen")
        return unseen
    users = shuffled(rows["user_id"].unique(), seed, "unseen_users")
    return set(users[: min(_count(len(users), share), max(0, len(users) - 2))])


def _sides(prompt_ids: Iterable[str], seed: int, shares: SplitParams) -> dict[str, str]:
    """The side of each distinct prompt."""
    order = shuffled(prompt_ids, seed, "prompts")
    test = _count(len(order), shares.test)
    validation = _count(len(order), shares.validation)
    return {
        prompt: "test" if rank < test else "validation" if rank < test + validation else "train"
        for rank, prompt in enumerate(order)
    }


def _own_sides(
    rows: pd.DataFrame,
    of_unseen: pd.Series[bool],
    seed: int,
    shares: SplitParams,
    notes: list[str],
) -> pd.Series[str]:
    """The side of each row by the data set's own split, with validation taken from training.

    A unit that is on both sides is on the training side: what is trained on is never tested.
    Validation takes its share of the seen users' training units, but no user's last one; and the
    same share of the training units that only unseen users judged.
    """
    unit = rows["prompt_id"]
    if "unit" in rows:
        unit = rows["unit"].fillna(unit)
    trained = (rows["side"] == "train").groupby(unit).transform("any")
    moved = int((trained & (rows["side"] == "test")).sum())
    if moved:
        notes.append(
            f"pairs of the data set's test side whose prompts it also trains on ({moved}) count "
            "as training pairs"
        )
    judged = rows.assign(unit=unit).loc[trained & ~of_unseen, ["unit", "user_id"]]
    judged = judged.drop_duplicates()
    left = judged["user_id"].value_counts().to_dict()
    users_of: dict[str, list[str]] = {}
    for name, user in zip(judged["unit"], judged["user_id"], strict=True):
        users_of.setdefault(name, []).append(user)
    wanted = _count(len(users_of), shares.validation)
    validation: set[str] = set()
    for name in shuffled(users_of, seed, "prompts"):
        if len(validation) == wanted:
            break
        if all(left[user] > 1 for user in users_of[name]):
            validation.add(name)
            for user in users_of[name]:
                left[user] -= 1
    others = shuffled(set(unit[trained]) - users_of.keys(), seed, "prompts")
    validation |= set(others[: _count(len(others), shares.validation)])
    side = trained.map({True: "train", False: "test"})
    return side.mask(unit.isin(validation), "validation")


def _count(n: int, share: float) -> int:
    """This share of n, rounded half up; at least one when there is a share."""
    return max(1, math.floor(n * share + 0.5)) if share else 0


def _require_sides(sides: dict[str, str], shares: SplitParams) -> None:
    if not {"train", "test"} <= set(sides.values()) or (
        shares.validation and "validation" not in sides.values()
    ):
        raise UserError(
            f"{len(sides)} distinct prompts are too few for training, validation "
            f"({shares.validation:g}) and test ({shares.test:g})",
            where="params.yaml: split",
            fix="a prompt is never on two sides: more prompts, or smaller shares",
        )


def _users(pairs: pd.DataFrame, index: dict[str, int]) -> pd.DataFrame:
    by_user = pairs.groupby("user_id", sort=True)
    users = by_user.agg(group=("group", "first"), user_text=("user_text", "first")).reset_index()
    users["user_index"] = users["user_id"].map(index).fillna(GENERIC_INDEX).astype("int64")
    users["seen"] = users["user_index"] != GENERIC_INDEX
    for name in SPLITS:
        counts = pairs.loc[pairs["prompt_split"] == name, "user_id"].value_counts()
        users[f"pairs_{name}"] = users["user_id"].map(counts).fillna(0).astype("int64")
    return users[list(USER_COLUMNS)]

"""Pairs on sides: training, validation, test, and users held out whole.

Prompts, units and users are ordered by a hash of the seed and themselves, so that added or removed
rows leave most others on their side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd

from prlhf.data import GENERIC, PAIR_COLUMNS, SPLITS, USER_COLUMNS, index_users
from prlhf.data.identity import as_column, normal_ids
from prlhf.data.ids import content_hash, shuffled
from prlhf.infra.errors import UserError
from prlhf.params import SplitParams
from prlhf.validation.partition import Numbers, text_sides, text_units

PARAMS: Final = "params.yaml: split"
"""Where faults of a split are."""


@dataclass(frozen=True)
class Prepared:
    """Pairs ready for training and evaluation.

    Attributes:
        pairs: All of them, in source order: `data.PAIR_COLUMNS`, `prompt_split` (the side that the
            pair is on) and `split` (the same, or "unseen" for an unseen user's pair). The index is
            that of the rows they were made of.
        users: `data.USER_COLUMNS`, one row each, sorted by `user_id`.
        notes: What a reader of the results should know about the split.
    """

    pairs: pd.DataFrame
    users: pd.DataFrame
    notes: list[str] = field(default_factory=list)

    def part(self, name: str) -> pd.DataFrame:
        """The table of one split: train, validation, test or unseen."""
        found = self.pairs[self.pairs["split"] == name].reset_index(drop=True)
        extra = ["prompt_split"] if name == "unseen" else []
        return found[[*PAIR_COLUMNS, *extra]]

    @property
    def share_of_few(self) -> float:
        """The share of pairs that are of seen users who have too few."""
        few = self.users.loc[self.users["few"], "user_id"]
        return float(self.pairs["user_id"].isin(few).mean())


def split(rows: pd.DataFrame, *, seed: int, shares: SplitParams, min_pairs: int) -> Prepared:
    """Put usable rows on sides, and set unseen users apart.

    What stays on one side is what `shares.by` says. Where seen users judged it, it is divided
    first, the rest by the same shares: every side of seen users gets its share however few prompts
    there are. A data set's own sides are kept, but nothing that it trains on is tested.

    Args:
        rows: Usable rows with `pair_id`, `prompt_id` and `opening_id`; `data.SPLIT_COLUMNS` if they
            have any.
        seed: The run's seed.
        shares: The `split` section.
        min_pairs: Seen users with fewer pairs are marked as `few`, and so are those without any to
            train on. Users who have as many are drawn as unseen ones.

    Returns:
        The pairs and users. By response, pairs between two sides are left out.

    Raises:
        UserError: There are too few prompts, units, responses or users for the shares asked for;
            or what `shares.by` needs is not in the rows.
    """
    notes: list[str] = []
    unseen = _unseen_users(rows, seed, shares.unseen_users, min_pairs)
    seen = ~rows["user_id"].isin(unseen)
    if shares.by == "response":
        side, unit = _by_response(rows, seed, shares, notes)
    else:
        unit = _units(rows, shares)
        if "side" in rows:
            side = _own_sides(rows["side"], unit, rows["user_id"], seen, seed, shares, notes)
        else:
            side = _drawn_sides(rows, unit, seen, seed, shares)
        if "unit" in rows and shares.by != "prompt":
            notes += _shared_prompts(rows["prompt_id"], side)
    pairs = rows.assign(unit=unit, prompt_split=side, split=side.where(seen, "unseen"))
    pairs = pairs[side.notna()]
    for name in _needed(shares):
        if not (pairs["split"] == name).any():
            given = "all it could hold is also learned from: see data.columns.unit and split.by"
            raise UserError(
                f"no pair of a seen user is on the {name} side",
                where=PARAMS,
                fix=given if "side" in rows else "more pairs per user, or another split",
            )
    index = index_users(sorted(set(pairs.loc[pairs["split"] != "unseen", "user_id"])))
    user_index = pairs["user_id"].map(index).fillna(GENERIC).astype("int64")
    pairs = pairs.assign(user_index=user_index)[[*PAIR_COLUMNS, "prompt_split", "split"]]
    prepared = Prepared(pairs, _users(pairs, min_pairs), notes)
    if few := int(prepared.users["few"].sum()):
        notes.append(
            f"{few} of {len(index)} seen users have fewer than {min_pairs} pairs "
            "(validate.min_pairs_per_user) or none to train on, together "
            f"{prepared.share_of_few:.1%} of the pairs: they are trained as the generic user, and "
            "placed by what they chose"
        )
    return prepared


def _needed(shares: SplitParams) -> list[str]:
    return [name for name in SPLITS if name != "validation" or shares.validation]


def _unseen_users(rows: pd.DataFrame, seed: int, share: float, min_pairs: int) -> set[str]:
    """The data set's own unseen users if it marks any user at all, else a random share.

    At least one user is unseen if a share is asked for, but two stay seen where there are two.
    """
    marked = rows["unseen"].notna()
    if marked.any():
        unseen = set(rows.loc[rows["unseen"].fillna(False).astype(bool), "user_id"].unique())
        if unseen == set(rows["user_id"].unique()):
            raise UserError("the data set marks all of its users as unseen")
        return unseen
    counts = rows["user_id"].value_counts(sort=False)
    users = shuffled(counts.index[counts >= min_pairs], seed, "unseen_users")
    return set(users[: min(_count(len(users), share), max(0, len(users) - 2))])


def _units(rows: pd.DataFrame, shares: SplitParams) -> pd.Series[str]:
    """The id of what each row stays on one side with: a given unit, or the prompt's dialogue."""
    if "unit" not in rows or shares.by == "prompt":
        return rows["opening_id"]
    codes, names = pd.factorize(rows["unit"])
    ids = pd.Series([content_hash(name) for name in names], dtype="str")
    return pd.Series(ids.reindex(codes).to_numpy(), rows.index).fillna(rows["opening_id"])


def _drawn_sides(
    rows: pd.DataFrame, unit: pd.Series[str], seen: pd.Series[bool], seed: int, shares: SplitParams
) -> pd.Series[str]:
    """The side of each row, by shares of the units."""
    first = _first_times(rows, unit) if shares.by == "time" else {}

    def order(units: Iterable[str]) -> list[str]:
        drawn = shuffled(units, seed, "prompts")
        return sorted(drawn, key=lambda name: -first[name]) if first else drawn

    sides = _sides(order(unit[seen].unique()), shares)
    if not set(_needed(shares)) <= set(sides.values()):
        what = "prompts" if "unit" not in rows or shares.by == "prompt" else "units"
        raise _too_few(len(sides), what, shares)
    sides |= _sides(order(set(unit.unique()) - sides.keys()), shares)
    return unit.map(sides)


def _too_few(number: int, what: str, shares: SplitParams) -> UserError:
    others = "; split.by: response divides responses instead" if what == "prompts" else ""
    return UserError(
        f"{number} distinct {what} are too few for training, validation "
        f"({shares.validation:g}) and test ({shares.test:g})",
        where=PARAMS,
        fix=f"none is ever on two sides: more {what}, or smaller shares{others}",
    )


def _first_times(rows: pd.DataFrame, unit: pd.Series[str]) -> dict[str, float]:
    """When each unit was judged first."""
    if "time" not in rows:
        raise UserError(
            "is time, but no column says when a choice was made",
            where=f"{PARAMS}.by",
            fix="map data.columns.time",
        )
    missing = rows["time"].isna()
    if missing.any():
        source, number = rows.loc[missing, ["source", "row"]].iloc[0]
        raise UserError(
            f"no time in this row (data.columns.time), nor in {int(missing.sum()) - 1} others",
            where=f"{source}: row {number}",
            fix="split.by: time needs one in each",
        )
    first = rows["time"].groupby(unit).min()
    return dict(zip(first.index, first, strict=True))


def _sides(order: list[str], shares: SplitParams) -> dict[str, str]:
    """The side of each of some units, of which the first are tested on."""
    test, validation = (_count(len(order), share) for share in (shares.test, shares.validation))
    names = ["test"] * test + ["validation"] * validation + ["train"] * len(order)
    return dict(zip(order, names, strict=False))


def _shared_prompts(prompt_id: pd.Series[str], side: pd.Series[str]) -> list[str]:
    """A note if units divide prompts, so that a tested one is also trained on."""
    tested = prompt_id[side == "test"]
    known = int(tested.isin(set(prompt_id[side == "train"])).sum())
    if not known:
        return []
    return [
        f"the prompts of {known} of {len(tested)} test pairs are also trained on, in other units "
        "(data.columns.unit)"
    ]


def _own_sides(
    given: pd.Series[str],
    unit: pd.Series[str],
    users: pd.Series[str],
    seen: pd.Series[bool],
    seed: int,
    shares: SplitParams,
    notes: list[str],
) -> pd.Series[str]:
    """The side of each row by the data set's own split; validation from training if it has none.

    A unit that is on several sides is on the training side, else on that for validation: what is
    learned from is never tested. Validation takes its share of the seen users' training units, but
    no user's last one; and the same share of the training units that only unseen users judged.
    """
    side = given.mask((given == "validation").groupby(unit).transform("any"), "validation")
    side = side.mask((given == "train").groupby(unit).transform("any"), "train")
    for name, learned in (("test", "train"), ("test", "validation"), ("validation", "train")):
        if moved := int(((given == name) & (side == learned)).sum()):
            kind = "training" if learned == "train" else learned
            also = "trains on" if learned == "train" else "validates with"
            notes.append(
                f"pairs of the data set's {name} side whose prompts it also {also} ({moved}) count "
                f"as {kind} pairs"
            )
    if (given == "validation").any():
        return side
    trained = side == "train"
    judged = pd.DataFrame({"unit": unit, "user_id": users})[trained & seen].drop_duplicates()
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
    return side.mask(unit.isin(validation), "validation")


def _by_response(
    rows: pd.DataFrame, seed: int, shares: SplitParams, notes: list[str]
) -> tuple[pd.Series[str], pd.Series[str]]:
    """The side and the unit of each row, so that a response is on one side for everybody.

    The side is missing for pairs between two sides, the unit for pairs between two units.
    """
    first, second, ids = _text_numbers(rows, seed)
    users = pd.factorize(rows["user_id"])[0].astype("int64")
    names = np.array(SPLITS)
    if "side" in rows:
        given = pd.Categorical(rows["side"], SPLITS).codes
        sides = np.full(len(ids), len(SPLITS))
        for ends in (first, second):
            np.minimum.at(sides, ends, given)
        kept = (sides[first] == given) & (sides[second] == given)
        if shares.validation and not (given == 1).any():
            of = np.flatnonzero(kept & (given == 0))
            part = text_sides(
                first[of], second[of], users[of], validation=shares.validation, test=0.0
            )
            trained = np.flatnonzero(sides[: len(part)] == 0)
            sides[trained] = part[trained]
            kept &= sides[first] == sides[second]
    else:
        sides = text_sides(first, second, users, validation=shares.validation, test=shares.test)
        kept = sides[first] == sides[second]
        if not set(_needed(shares)) <= set(names[sides[first[kept]]]):
            raise _too_few(len(ids), "responses", shares)
    if lost := int((~kept).sum()):
        gone = rows["user_id"].nunique() - rows.loc[kept, "user_id"].nunique()
        people = f", among them all of {gone} users" if gone else ""
        notes.append(
            f"{lost} of {len(rows)} pairs ({lost / len(rows):.1%}) are between responses on "
            f"different sides and are set aside (split.by: response){people}"
        )
    units = text_units(first[kept], second[kept], users[kept], largest=shares.test)
    whole = units[first[kept]] == units[second[kept]]
    found = pd.Series(ids[: len(units)]).groupby(units).min()
    unit = pd.Series(None, rows.index, dtype="str")
    unit[kept] = found.reindex(units[first[kept]]).where(whole).to_numpy()
    side = pd.Series(names[sides[first]], rows.index, dtype="str").where(kept)
    return side, unit


def _text_numbers(rows: pd.DataFrame, seed: int) -> tuple[Numbers, Numbers, np.ndarray[Any, Any]]:
    """Numbers of the chosen and of the rejected texts, and the texts' ids in that order.

    Texts that differ in white space only are one. The order is random but for the texts: rows of
    another order get the same numbers.
    """
    codes, texts = pd.factorize(pd.concat([rows["chosen"], rows["rejected"]]))
    keys = normal_ids(as_column(texts)).to_pandas()
    alike = pd.factorize(keys)[0]
    ids = pd.Series([content_hash(text) for text in texts]).groupby(alike).min().to_numpy()
    order = np.argsort([content_hash(str(seed), "responses", name) for name in ids])
    numbers = np.argsort(order)[alike[codes]]
    return numbers[: len(rows)], numbers[len(rows) :], ids[order]


def _count(n: int, share: float) -> int:
    """This share of n, rounded half up; at least one when there is a share."""
    return max(1, math.floor(n * share + 0.5)) if share else 0


def _users(pairs: pd.DataFrame, min_pairs: int) -> pd.DataFrame:
    columns = ("group", "user_text", "user_index")
    by_user = pairs.groupby("user_id", sort=True)
    users = by_user.agg(**{name: (name, "first") for name in columns}).reset_index()
    users["seen"] = users["user_index"] != GENERIC
    for name in SPLITS:
        counts = pairs.loc[pairs["prompt_split"] == name, "user_id"].value_counts()
        users[f"pairs_{name}"] = users["user_id"].map(counts).fillna(0).astype("int64")
    total = users[[f"pairs_{name}" for name in SPLITS]].sum(axis=1)
    users["few"] = users["seen"] & ((total < min_pairs) | (users["pairs_train"] == 0))
    return users[list(USER_COLUMNS)]

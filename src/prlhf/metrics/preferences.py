"""Who prefers what: accuracy on users' choices, win rates, and how far judges agree.

*Preference accuracy* asks whether a model prefers what its user preferred. The implicit reward of a
response is `beta * (log pi(y|x,u) - log pi_ref(y|x))` (Rafailov et al., 2023), and a pair is
predicted right if the chosen response has the higher one. `beta` does not change the sign, so the
margins arrive without it.

*Win rates* and *agreement* count the verdicts of judges on generated answers and held-out choices.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from prlhf.data import ROUNDING, agreement
from prlhf.judging.comparisons import verdict_column
from prlhf.metrics.intervals import Estimate, Floats, Interval, Intervals
from prlhf.metrics.tree import MetricTree, drawn_by
from prlhf.metrics.worst import worst_user

COUNTS = ("user_id", "condition", "group", "seen", "wins", "ties", "losses", "pairs", "accuracy")
"""Columns of `accuracy_by_user`."""

VALIDATION = "validation"
"""The split of scored pairs that settings are chosen by: in no figure that results are told by."""

OUTCOMES = {"wins": 1, "ties": 0, "losses": -1}
"""Verdicts on an answer."""


def predictions(pairs: pd.DataFrame, units: pd.Series) -> pd.DataFrame:
    """What a method makes of each pair.

    Args:
        pairs: One row per pair and condition: `split, pair_id, user_id, group, condition, margin`
            as in `data/scores/<method>/pairs.parquet`; margins in nats.
        units: What stays on one side of the split with a pair, by its id.

    Returns:
        `pairs` with `unit`, `score` (see `agreement`) and `weight`, one over the number of the
        user's pairs in the same split under the same condition: the weighted mean of scores is the
        mean over users of their accuracies.
    """
    scores = agreement(_margins(pairs), ROUNDING)
    table = pairs.assign(unit=units_of(pairs, units), score=scores)
    sizes = table.groupby(["split", "condition", "user_id"])["pair_id"].transform("size")
    return table.assign(weight=1.0 / sizes)


def units_of(pairs: pd.DataFrame, units: pd.Series) -> pd.Series:
    """The unit of each pair; a pair between two stands for itself."""
    known = pairs["pair_id"].map(units).astype(object)
    return known.where(known.notna(), pairs["pair_id"])


def accuracy_by_user(pairs: pd.DataFrame) -> pd.DataFrame:
    """Count right, tied and wrong predictions of each user under each condition.

    Args:
        pairs: See `predictions`; those of validation do not count.

    Returns:
        One row per user and condition, sorted by both, with `COUNTS`. `condition` is `user` (the
        user's own user tokens) or `generic`; `seen` is False for users held out of training.
    """
    pairs = pairs[pairs["split"] != VALIDATION]
    score = pairs["score"]
    counted = pairs[["user_id", "condition", "group"]].assign(
        seen=pairs["split"] == "test", wins=score == 1, ties=score == 0.5, losses=score == 0
    )
    sums = {name: (name, "sum") for name in OUTCOMES}
    table = counted.groupby(["user_id", "condition"], sort=True, as_index=False).agg(
        group=("group", "first"), seen=("seen", "first"), **sums
    )
    table["pairs"] = table["wins"] + table["ties"] + table["losses"]
    table["accuracy"] = (table["wins"] + 0.5 * table["ties"]) / table["pairs"]
    return table[list(COUNTS)]


def validated(pairs: pd.DataFrame) -> pd.DataFrame:
    """`user_id, wins, ties, losses, pairs, accuracy` of each user on the pairs of validation."""
    own = pairs[pairs["split"] == VALIDATION].assign(split="test")
    return accuracy_by_user(own).drop(columns=["condition", "group", "seen"])


def accuracy(intervals: Intervals, pairs: pd.DataFrame) -> Estimate | None:
    """The mean over users of their accuracies, for other users and other prompts.

    Args:
        intervals: Makes the interval; there is none for a single user.
        pairs: Rows of `predictions`, of one split and condition.
    """
    return intervals.share(pairs["score"], pairs["user_id"], pairs["unit"], weights=pairs["weight"])


class Gain(NamedTuple):
    """What one method gains over another in accuracy, the mean over users.

    Attributes:
        others: With the interval for other users and other prompts.
        same_users: With the interval for these users and other prompts.
        pairs: How many both scored.
        users: How many users they are of.
    """

    others: Estimate
    same_users: Estimate
    pairs: int
    users: int


def accuracy_gain(
    intervals: Intervals, own: pd.DataFrame, other: pd.DataFrame, split: str, condition: str
) -> Gain | None:
    """Compare two methods on the pairs that both scored; None if there are none.

    A difference between methods that give the very same margins is zero without doubt.

    Args:
        intervals: Makes the intervals.
        own, other: `predictions` of both.
        split: Whose pairs: `test` or `unseen`.
        condition: `user` or `generic`.
    """
    one, two = (
        table[(table["split"] == split) & (table["condition"] == condition)]
        for table in (own, other)
    )
    both = one.merge(
        two[["pair_id", "score", "margin"]], on="pair_id", suffixes=("", "_other"), validate="1:1"
    )
    if both.empty:
        return None
    users, units = both["user_id"], both["unit"]
    weights = 1.0 / both.groupby("user_id")["pair_id"].transform("size")
    if both["margin"].equals(both["margin_other"]):
        others = same = Estimate(0.0, Interval(0.0, 0.0), 0.0)
    else:
        gains = both["score"] - both["score_other"]
        found = intervals.difference(gains, users, units, weights=weights)
        kept = intervals.difference(gains, units, weights=weights, given=users)
        assert found is not None
        assert kept is not None
        others, same = found, kept
    return Gain(others, same, len(both), users.nunique())


def _margins(pairs: pd.DataFrame) -> NDArray[np.float64]:
    return pairs["margin"].to_numpy(dtype=np.float64, na_value=np.nan)


def served(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `accuracy_by_user` of users as served: unseen users by the generic tokens."""
    condition = np.where(table["seen"], "user", "generic")
    return table[table["condition"] == condition].reset_index(drop=True)


def as_generic(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `accuracy_by_user` in which seen users are served as if they were unknown."""
    return table[table["seen"] & (table["condition"] == "generic")].reset_index(drop=True)


@dataclass(frozen=True)
class Verdicts:
    """What the judge stage wrote.

    Attributes:
        comparisons: `data/judged/verdicts.parquet`, see `comparisons.judge`.
        choices: `data/judged/choices.parquet`, see `comparisons.judge_choices`.
        kinds: The judges; the first is the one whose verdicts count.
    """

    comparisons: pd.DataFrame
    choices: pd.DataFrame
    kinds: Sequence[str]

    def against(self, baseline: str) -> Verdicts:
        """With the comparisons of a personalised baseline turned round: it is always `other`."""
        table = self.comparisons
        turned = table["method"] == baseline
        opposite = {"method": table["other"], "other": table["method"]}
        opposite |= {name: -table[name] for name in map(self.column, self.kinds)}
        exchanged = {name: table[name].mask(turned, other) for name, other in opposite.items()}
        return replace(self, comparisons=table.assign(**exchanged))

    def column(self, kind: str) -> str:
        """The column with the verdicts of a judge."""
        return verdict_column(kind, self.kinds)


def put_agreement(tree: MetricTree, verdicts: Verdicts) -> None:
    """`judge_agreement`: how often the judge takes what users themselves chose; ties count half."""
    pairs = _with_agreement(verdicts.choices, "verdict")
    tree.put_share(("judge_agreement", "all"), pairs, pairs["agree"])
    for group, part in pairs.groupby("group", sort=True):
        tree.put_share(("judge_agreement", "groups", str(group)), part, part["agree"])


def _with_agreement(choices: pd.DataFrame, column: str) -> pd.DataFrame:
    pairs = choices[choices[column].notna()]
    return pairs.assign(agree=(pairs[column].astype(float) + 1.0) / 2.0)


def wins_by_user(comparisons: pd.DataFrame) -> pd.DataFrame:
    """How the comparisons with a verdict went for each user.

    Returns:
        Indexed by `method, other, user_id, seen`: `wins`, `ties` and `losses`, and `score`, the
        share of wins with ties counted half.
    """
    rows = comparisons[comparisons["verdict"].notna()]
    outcomes = {name: rows["verdict"] == verdict for name, verdict in OUTCOMES.items()}
    keys = ["method", "other", "user_id", "seen"]
    table = rows[keys].assign(**outcomes).groupby(keys, sort=True).sum().astype("int64")
    return table.assign(score=(table["wins"] + table["ties"] / 2) / table.sum(axis=1))


def put_win_rates(
    tree: MetricTree, verdicts: Verdicts, name: str, other: str, notes: list[str]
) -> None:
    """`win_rate.<name>_vs_<other>`: seen users, each group of them, and unseen users."""
    at = ("win_rate", f"{name}_vs_{other}")
    table = verdicts.comparisons
    rows = table[(table["method"] == name) & (table["other"] == other)]
    if missing := int(rows["verdict"].isna().sum()):
        notes.append(
            f"{name} against {other}: the judge gave no verdict on {missing} of {len(rows)} "
            "comparisons, which are left out."
        )
    rows = rows[rows["verdict"].notna()]
    seen = rows["seen"].astype(bool)
    compared, unseen = rows[seen], rows[~seen]
    if compared.empty:
        notes.append(
            f"{name} against {other}: no two answers to the same prompt for a user whose "
            "preference the judge knows; the win rate is left out."
        )
        return
    _put_win_rate(tree, at, compared)
    scores = (compared["verdict"].astype(float) + 1.0) / 2.0
    weights = 1.0 / compared.groupby("user_id")["verdict"].transform("size")
    macro = tree.intervals.share(
        scores, compared["user_id"], compared["prompt_id"], weights=weights
    )
    tree.put((*at, "macro"), macro)
    tree.put((*at, "worst_user"), worst_user(tree.intervals, wins_by_user(compared)))
    if not unseen.empty:
        _put_win_rate(tree, (*at, "unseen"), unseen)
    finished = compared["finished"].astype(bool)
    for place, part in (((), compared), (("finished",), compared[finished])):
        if part.empty:
            continue
        if place:
            _put_win_rate(tree, (*at, *place), part)
        for group, rows in part.groupby("group", sort=True):
            _put_win_rate(tree, (*at, *place, "groups", str(group)), rows)


def _put_win_rate(tree: MetricTree, at: tuple[str, ...], compared: pd.DataFrame) -> None:
    """Shares of all comparisons, and `win_rate`: wins among those that did not end in a tie."""
    win, tie, loss = (compared["verdict"] == verdict for verdict in OUTCOMES.values())
    for outcome, values in (("win", win), ("loss", loss), ("tie", tie)):
        tree.put_share((*at, outcome), compared, values)
    tree.put_share((*at, "win_rate"), compared[~tie], win[~tie])
    tree.count((*at, "comparisons"), len(compared))


def put_judges(tree: MetricTree, verdicts: Verdicts) -> None:
    """`judges`: agreement between judges, and of an LLM with itself; nothing for any other alone.

    Comparisons that were settled without a judge do not count: all judges agree on them.
    """
    asked = verdicts.comparisons[verdicts.comparisons["asked"].astype(bool)]
    if "forward" in asked:
        both = asked[asked["forward"].notna() & asked["reversed"].notna()]
        same = both["forward"] == both["reversed"]
        tree.put_share(("judges", "llm", "same_in_both_orders"), both, same)
    columns = {kind: verdicts.column(kind) for kind in verdicts.kinds}
    if len(columns) < 2:
        return
    for kind, column in columns.items():
        pairs = _with_agreement(verdicts.choices, column)
        tree.put_share(("judges", kind, "choices"), pairs, pairs["agree"])
    for one, other in itertools.combinations(columns, 2):
        both = asked[asked[columns[one]].notna() & asked[columns[other]].notna()]
        cells = [
            (both[columns[one]] == a) & (both[columns[other]] == b)
            for a, b in itertools.product(OUTCOMES.values(), repeat=2)
        ]
        at = ("judges", f"{one}_vs_{other}")
        same = both[columns[one]] == both[columns[other]]
        tree.put_share((*at, "agreement"), both, same)
        rows = np.column_stack([cell.to_numpy(dtype=np.float64) for cell in cells])
        kappa = tree.intervals.statistic(rows, cohens_kappa, *drawn_by(both))
        tree.put((*at, "kappa"), kappa)
        tree.count((*at, "comparisons"), len(both))


def cohens_kappa(cells: Floats) -> Floats:
    """Agreement beyond chance, `(p_o - p_e) / (1 - p_e)` (Cohen, 1960); ties are a category.

    Args:
        cells: Counts of pairs of verdicts, `[n, 9]`: a 3 x 3 table of win, tie and loss, by rows.

    Returns:
        `[n]`; NaN for a table without counts, and where chance alone makes all verdicts equal, as
        when both judges always say the same.
    """
    table = cells.reshape(len(cells), 3, 3)
    total = table.sum(axis=(1, 2))
    agreed = _over(np.trace(table, axis1=1, axis2=2), total)
    chance = _over((table.sum(axis=1) * table.sum(axis=2)).sum(axis=1), total**2)
    return _over(agreed - chance, 1.0 - chance)


def _over(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(
        numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 1e-12
    )

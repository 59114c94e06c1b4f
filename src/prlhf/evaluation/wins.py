"""Figures from verdicts: win rates, agreement with users' own choices and between judges."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prlhf.evaluation.statistics import Floats
from prlhf.evaluation.tree import MetricTree, by_prompt

if TYPE_CHECKING:
    import pandas as pd

OUTCOMES = (1, 0, -1)


@dataclass(frozen=True)
class Verdicts:
    """What the judge stage left behind.

    Attributes:
        comparisons: `data/judged/verdicts.parquet`, see `comparisons.judge`.
        choices: `data/judged/choices.parquet`, see `comparisons.judge_choices`.
        kinds: The judges; the first is the one whose verdicts count.
    """

    comparisons: pd.DataFrame
    choices: pd.DataFrame
    kinds: Sequence[str]

    def column(self, kind: str) -> str:
        """The column that a judge's verdicts stand in."""
        return "verdict" if kind == self.kinds[0] else f"verdict_{kind}"


def put_agreement(tree: MetricTree, verdicts: Verdicts) -> None:
    """`judge_agreement`: how often the judge takes what users themselves chose; ties count half."""
    pairs = _with_agreement(verdicts.choices, "verdict")
    tree.put_mean(("judge_agreement", "all"), pairs, pairs["agree"])
    for group, part in pairs.groupby("group", sort=True):
        tree.put_mean(("judge_agreement", "groups", str(group)), part, part["agree"])


def _with_agreement(choices: pd.DataFrame, column: str) -> pd.DataFrame:
    pairs = choices[choices[column].notna()]
    return pairs.assign(agree=(pairs[column].astype(float) + 1.0) / 2.0)


def by_user(comparisons: pd.DataFrame) -> pd.DataFrame:
    """How the comparisons with a verdict went for each user.

    Returns:
        Indexed by `method, other, user_id, seen`: `wins`, `ties` and `losses`, and `score`, the
        share of wins with ties counted half.
    """
    rows = comparisons[comparisons["verdict"].notna()]
    outcomes = {
        name: rows["verdict"] == outcome
        for name, outcome in zip(("wins", "ties", "losses"), OUTCOMES, strict=True)
    }
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
    missing = int(rows["verdict"].isna().sum())
    if missing:
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
    users = by_user(compared)
    tree.put((*at, "macro"), tree.bootstrap.mean(users["score"]))
    worst = tree.bootstrap.minimum(users["losses"], users["ties"], users["wins"])
    tree.put((*at, "worst_user"), worst)
    for group, part in compared.groupby("group", sort=True):
        _put_win_rate(tree, (*at, "groups", str(group)), part)
    if not unseen.empty:
        _put_win_rate(tree, (*at, "unseen"), unseen)


def _put_win_rate(tree: MetricTree, at: tuple[str, ...], compared: pd.DataFrame) -> None:
    """Shares of all comparisons, and `win_rate`: wins among those that did not end in a tie."""
    win, tie, loss = (compared["verdict"] == outcome for outcome in OUTCOMES)
    for outcome, values in (("win", win), ("loss", loss), ("tie", tie)):
        tree.put_mean((*at, outcome), compared, values)
    rows = by_prompt(compared, [win, win | loss])
    tree.put((*at, "win_rate"), tree.bootstrap.ratio(rows))
    tree.count((*at, "comparisons"), len(compared))


def put_judges(tree: MetricTree, verdicts: Verdicts) -> None:
    """`judges`: what several judges make of each other; nothing for one, unless it is an LLM.

    Comparisons that no judge was asked about do not count: all agree on them.
    """
    asked = verdicts.comparisons[verdicts.comparisons["asked"].astype(bool)]
    if "forward" in asked:
        both = asked[asked["forward"].notna() & asked["reversed"].notna()]
        tree.put_mean(
            ("judges", "llm", "same_in_both_orders"), both, both["forward"] == both["reversed"]
        )
    if len(verdicts.kinds) < 2:
        return
    for kind in verdicts.kinds:
        pairs = _with_agreement(verdicts.choices, verdicts.column(kind))
        tree.put_mean(("judges", kind, "choices"), pairs, pairs["agree"])
    for one, other in itertools.combinations(verdicts.kinds, 2):
        first, second = (asked[verdicts.column(kind)] for kind in (one, other))
        known = first.notna() & second.notna()
        both = asked[known]
        cells = [
            (first[known] == a) & (second[known] == b)
            for a, b in itertools.product(OUTCOMES, OUTCOMES)
        ]
        at = ("judges", f"{one}_vs_{other}")
        rows = by_prompt(both, cells)
        tree.put((*at, "agreement"), tree.bootstrap.statistic(rows, raw_agreement))
        tree.put((*at, "kappa"), tree.bootstrap.statistic(rows, cohens_kappa))
        tree.count((*at, "comparisons"), len(both))


def raw_agreement(cells: Floats) -> Floats:
    """The share of equal verdicts.

    Args:
        cells: Counts of pairs of verdicts, `[n, 9]`: a 3 x 3 table of win, tie and loss, by rows.

    Returns:
        `[n]`; NaN for a table without counts.
    """
    table = cells.reshape(len(cells), 3, 3)
    total = table.sum(axis=(1, 2))
    return _over(np.trace(table, axis1=1, axis2=2), total)


def cohens_kappa(cells: Floats) -> Floats:
    """Agreement beyond chance, `(p_o - p_e) / (1 - p_e)` (Cohen, 1960); ties are a category.

    Args:
        cells: As for `raw_agreement`.

    Returns:
        `[n]`; NaN where chance alone makes the verdicts equal, as when both judges always say the
        same one thing.
    """
    table = cells.reshape(len(cells), 3, 3)
    total = table.sum(axis=(1, 2))
    chance = _over((table.sum(axis=1) * table.sum(axis=2)).sum(axis=1), total**2)
    return _over(raw_agreement(cells) - chance, 1.0 - chance)


def _over(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(
        numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 1e-12
    )

"""Implicit-reward preference accuracy: does a model prefer what its user preferred?

The implicit reward of a response is `beta * (log pi(y|x,u) - log pi_ref(y|x))` (Rafailov et al.,
2023); a pair is predicted right when the chosen response has the higher one. `beta` does not
change the sign, so the margins arrive without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

PAIR_COLUMNS = ("split", "pair_id", "prompt_id", "user_id", "group", "condition", "margin")
"""Columns of `data/scores/<method>/pairs.parquet` that the accuracy needs."""

COLUMNS = (
    "user_id", "condition", "group", "seen", "wins", "ties", "losses", "pairs", "accuracy"
)  # fmt: skip
"""Columns of `per_user`."""


def per_user(pairs: pd.DataFrame) -> pd.DataFrame:
    """Count right, tied and wrong predictions of each user under each condition.

    A margin above 0 is right (1), exactly 0 is a tie (0.5, the worth of a guess), anything else is
    wrong (0); a margin that is NaN, as a model that diverged gives, is wrong as well.

    Args:
        pairs: One row per pair and condition, with `PAIR_COLUMNS`; margins in nats.

    Returns:
        One row per user and condition, sorted by both, with `COLUMNS`. `condition` is `user` (the
        user's own user tokens) or `generic`; `seen` is False for users held out of training.
    """
    margin = _margins(pairs)
    counted = pairs[["user_id", "condition", "group"]].assign(
        seen=pairs["split"] == "test", wins=margin > 0, ties=margin == 0, pairs=1
    )
    table = counted.groupby(["user_id", "condition"], sort=True, as_index=False).agg(
        group=("group", "first"),
        seen=("seen", "first"),
        wins=("wins", "sum"),
        ties=("ties", "sum"),
        pairs=("pairs", "sum"),
    )
    table["losses"] = table["pairs"] - table["wins"] - table["ties"]
    table["accuracy"] = (table["wins"] + 0.5 * table["ties"]) / table["pairs"]
    return table[list(COLUMNS)]


def pair_gains(pairs: pd.DataFrame, baseline: pd.DataFrame) -> pd.DataFrame:
    """What one method gains over another on each held-out pair of seen users, as they are served.

    Returns:
        `prompt_id, weight, gain` per pair scored by both; `gain` in {-1, -0.5, 0, 0.5, 1}. A user's
        weights sum to 1, so that the weighted mean is the gain in macro accuracy.
    """
    own, other = (
        table[(table["split"] == "test") & (table["condition"] == "user")]
        for table in (pairs, baseline)
    )
    both = (
        own[["pair_id", "prompt_id", "user_id"]]
        .assign(own=_worth(_margins(own)))
        .merge(
            other[["pair_id"]].assign(other=_worth(_margins(other))), on="pair_id", validate="1:1"
        )
    )
    sizes = both.groupby("user_id")["pair_id"].transform("size")
    return both[["prompt_id"]].assign(weight=1.0 / sizes, gain=both["own"] - both["other"])


def generic_gains(pairs: pd.DataFrame, baseline: pd.DataFrame) -> pd.DataFrame:
    """What one method gains over another for each user where it does not know who they are.

    Returns:
        `user_id, seen, gain`: the difference in accuracy under the condition `generic`, over the
        pairs that both scored.
    """
    own, other = (table[table["condition"] == "generic"] for table in (pairs, baseline))
    both = (
        own[["pair_id", "split", "user_id"]]
        .assign(own=_worth(_margins(own)))
        .merge(
            other[["pair_id"]].assign(other=_worth(_margins(other))), on="pair_id", validate="1:1"
        )
    )
    both = both.assign(seen=both["split"] == "test", gain=both["own"] - both["other"])
    return both.groupby(["user_id", "seen"], sort=True, as_index=False).agg(gain=("gain", "mean"))


def _margins(pairs: pd.DataFrame) -> NDArray[np.float64]:
    return pairs["margin"].to_numpy(dtype=np.float64, na_value=np.nan)


def _worth(margin: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 for right, 0.5 for a tie, 0 for wrong."""
    return np.where(margin > 0, 1.0, np.where(margin == 0, 0.5, 0.0))


def served(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `per_user` under the condition in which each user is served.

    Seen users get their own user tokens; users held out of training get the generic user's.
    """
    condition = np.where(table["seen"], "user", "generic")
    return table[table["condition"] == condition].reset_index(drop=True)


def as_generic(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `per_user` in which seen users are served as if they were unknown."""
    return table[table["seen"] & (table["condition"] == "generic")].reset_index(drop=True)

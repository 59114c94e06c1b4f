"""The tree of figures that becomes `metrics.json`, and beside it that of their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from prlhf.metrics.intervals import Estimate, Intervals

DIGITS = 6
"""Decimals kept: more than any figure's accuracy, fewer than a change of summation order shows."""


@dataclass
class MetricTree:
    """Nested dictionaries of figures, and of their intervals, for `metrics.json`.

    Figures that do not exist (`None`) are left out of both.
    """

    intervals: Intervals
    values: dict[str, Any] = field(default_factory=dict)
    spreads: dict[str, Any] = field(default_factory=dict)

    def put(self, path: Sequence[str], estimate: Estimate | None) -> None:
        """Set the figure at `path`, and its interval where it has one."""
        if estimate is None:
            return
        self.number(path, estimate.value)
        self.put_interval(path, estimate)

    def put_interval(self, path: Sequence[str], estimate: Estimate | None) -> None:
        """Set the interval at `path` alone."""
        if estimate is not None and estimate.interval is not None:
            for end, value in estimate.interval._asdict().items():
                _set(self.spreads, (*path, end), round(value, DIGITS))

    def number(self, path: Sequence[str], value: float | None) -> None:
        """Set a figure without an interval at `path`."""
        if value is not None:
            _set(self.values, path, round(value, DIGITS))

    def count(self, path: Sequence[str], value: int) -> None:
        """Set a plain count at `path`."""
        _set(self.values, path, int(value))

    def put_mean(self, path: Sequence[str], table: pd.DataFrame, values: pd.Series) -> None:
        """Set the mean of `values`, one per row of `table`; NaN are not counted.

        The interval is for other prompts (column `prompt_id`) and, where rows are single users',
        other users (`user_id`).
        """
        self.put(path, self.intervals.mean(values.astype(float), *drawn_by(table)))

    def put_amount(self, path: Sequence[str], table: pd.DataFrame, values: pd.Series) -> None:
        """As `put_mean`, of values that are never negative."""
        self.put(path, self.intervals.amount(values.astype(float), *drawn_by(table)))

    def put_share(self, path: Sequence[str], table: pd.DataFrame, values: pd.Series) -> None:
        """As `put_mean`, of values within [0, 1]."""
        self.put(path, self.intervals.share(values.astype(float), *drawn_by(table)))

    def result(self) -> dict[str, Any]:
        """The whole tree, with the intervals under `interval`."""
        return {**self.values, "interval": {"level": self.intervals.level, **self.spreads}}


def drawn_by(table: pd.DataFrame) -> list[pd.Series]:
    """The factors of a table of texts or comparisons: prompts, and users where they differ."""
    return [
        table[column]
        for column in ("prompt_id", "user_id")
        if column in table and table[column].nunique() > 1
    ] or [table["prompt_id"]]


def _set(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value

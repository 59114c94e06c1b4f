"""Figures and their intervals, collected under the same paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from prlhf.evaluation.statistics import Bootstrap, Estimate, Floats

DIGITS = 6
"""Decimals kept: more than any figure's accuracy, fewer than a change of summation order shows."""


@dataclass
class MetricTree:
    """Nested dictionaries of figures, and of their intervals, for `metrics.json`.

    Figures that do not exist (`None`) are left out of both.
    """

    bootstrap: Bootstrap
    values: dict[str, Any] = field(default_factory=dict)
    intervals: dict[str, Any] = field(default_factory=dict)

    def put(self, path: Sequence[str], estimate: Estimate | None) -> None:
        """Set the figure at `path`, and its interval where it has one."""
        if estimate is None:
            return
        _set(self.values, path, round(estimate.value, DIGITS))
        self.put_interval(path, estimate)

    def put_interval(self, path: Sequence[str], estimate: Estimate | None) -> None:
        """Set the interval at `path` alone."""
        if estimate is not None and estimate.interval is not None:
            for end, value in zip(("low", "high"), estimate.interval, strict=True):
                _set(self.intervals, (*path, end), round(value, DIGITS))

    def count(self, path: Sequence[str], value: int) -> None:
        """Set a plain count at `path`."""
        _set(self.values, path, int(value))

    def put_mean(self, path: Sequence[str], table: pd.DataFrame, values: pd.Series) -> None:
        """Set the mean of `values`, one per row of `table`; NaN are not counted.

        The interval is over the prompts of `table` (column `prompt_id`).
        """
        numbers = values.astype(float)
        rows = by_prompt(table, [numbers.fillna(0.0), numbers.notna()])
        self.put(path, self.bootstrap.ratio(rows))

    def result(self) -> dict[str, Any]:
        """The whole tree, with the intervals under `interval`."""
        settings = {"level": self.bootstrap.level, "replicates": self.bootstrap.replicates}
        return {**self.values, "interval": {**settings, **self.intervals}}


def by_prompt(table: pd.DataFrame, columns: Sequence[pd.Series]) -> Floats:
    """Sums of each column over the rows of each prompt of `table`: `[prompts, columns]`."""
    _, prompt = np.unique(table["prompt_id"].to_numpy(dtype=str), return_inverse=True)
    prompts = int(prompt.max()) + 1 if len(prompt) else 0
    sums = [
        np.bincount(prompt, weights=column.to_numpy(dtype=np.float64), minlength=prompts)
        for column in columns
    ]
    return np.column_stack(sums)


def _set(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value

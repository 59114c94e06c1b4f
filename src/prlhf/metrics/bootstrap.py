"""Figures with bootstrap intervals: how far they would move with other users or other prompts.

All intervals are percentile intervals of the non-parametric bootstrap: whole *units* (users, or
prompts with everything that was answered to them) are drawn with replacement as often as there
are units, and the statistic is computed anew for each draw.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]

_CHUNK = 4_000_000
"""Numbers drawn at once, which bounds memory at a few dozen megabytes."""

DIGITS = 6
"""Decimals kept: more than any figure's accuracy, fewer than a change of summation order shows."""

MAX_UNITS_FOR_MINIMUM = 20_000
"""Users beyond which `Bootstrap.minimum`, which draws the pairs of each, would be too slow."""


class Interval(NamedTuple):
    """The two ends of a confidence interval."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A figure with its interval; `interval` is None if it cannot be computed, as for one unit."""

    value: float
    interval: Interval | None


def ratio(sums: Floats) -> Floats:
    """Column 0 over column 1 of `[replicates, 2]` sums; NaN where column 1 is 0."""
    numerator, denominator = sums[:, 0], sums[:, 1]
    return np.divide(numerator, denominator, out=np.full(len(sums), np.nan), where=denominator != 0)


@dataclass(frozen=True)
class Bootstrap:
    """Percentile bootstrap with fixed seed, number of replicates and level.

    Every call starts from the same seed: the interval of a figure does not depend on which other
    figures are computed beside it.
    """

    seed: int
    replicates: int = 2000
    level: float = 0.95

    def mean(self, values: ArrayLike) -> Estimate | None:
        """The mean over units (`values` is `[units]`); None without units."""
        column = np.asarray(values, dtype=np.float64)
        return self.ratio(np.column_stack([column, np.ones(len(column))]))

    def ratio(self, rows: ArrayLike) -> Estimate | None:
        """The sum of column 0 over the sum of column 1 of `rows`, `[units, 2]`.

        If a unit is a prompt, column 0 the sum over its texts and column 1 their number, this is
        the mean over texts, with an interval that draws the texts of a prompt together.
        """
        return self.statistic(rows, ratio)

    def statistic(self, rows: ArrayLike, statistic: Callable[[Floats], Floats]) -> Estimate | None:
        """A function of the column sums of `rows` (`[units, k]`).

        Args:
            rows: What each unit adds to each of `k` sums.
            statistic: Maps `[n, k]` sums to `[n]` figures; NaN for one that does not exist.

        Returns:
            None if the figure itself does not exist (no units, or nothing to divide by). The
            interval is None for a single unit, or if most replicates have no figure.
        """
        table = np.asarray(rows, dtype=np.float64)
        if len(table) == 0:
            return None
        value = float(statistic(table.sum(axis=0, keepdims=True))[0])
        if not np.isfinite(value):
            return None
        if len(table) == 1:
            return Estimate(value, None)
        return Estimate(value, self._percentiles(statistic(self._sums(table))))

    def minimum(self, losses: ArrayLike, ties: ArrayLike, wins: ArrayLike) -> Estimate | None:
        """The lowest accuracy of any user, from each user's counts (each `[users]`).

        The users are kept and the pairs of each drawn anew: drawing users could never go below the
        lowest accuracy observed. The unluckiest of many users looks worse than it is, so the
        interval tends to lie too low rather than too high.
        """
        counts = np.column_stack([losses, ties, wins]).astype(np.int64)
        pairs = counts.sum(axis=1)
        counts, pairs = counts[pairs > 0], pairs[pairs > 0]
        if len(pairs) == 0:
            return None
        worth = np.array([0.0, 0.5, 1.0])
        value = float((counts @ worth / pairs).min())
        if len(pairs) > MAX_UNITS_FOR_MINIMUM:
            return Estimate(value, None)
        shares = counts / pairs[:, None]
        rng = np.random.default_rng(self.seed)
        lowest = [
            (rng.multinomial(pairs, shares, size=(size, len(pairs))) @ worth / pairs).min(axis=1)
            for size in self._chunks(3 * len(pairs))
        ]
        return Estimate(value, self._percentiles(np.concatenate(lowest)))

    def crossed_mean(self, values: ArrayLike) -> Estimate | None:
        """The mean of a table of users and seeds (`[users, seeds]`, NaN where there is no figure).

        Users and seeds are drawn independently, and a figure counts as often as its user was drawn
        times its seed was drawn (the pigeonhole bootstrap, Owen 2007): the interval says how far
        the mean would move with other users and other seeds.

        Returns:
            None without a figure. The interval is None for a single user: seeds alone do not say
            how another user would fare.
        """
        table = np.asarray(values, dtype=np.float64)
        known = np.isfinite(table)
        if not known.any():
            return None
        table, known = table[known.any(axis=1)], known[known.any(axis=1)]
        value = float(table[known].mean())
        users, seeds = table.shape
        if users < 2:
            return Estimate(value, None)
        filled = np.where(known, table, 0.0)
        rng = np.random.default_rng(self.seed)
        means = []
        for size in self._chunks(users):
            of_users = rng.multinomial(users, np.full(users, 1 / users), size=size)
            of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=size)
            # [n, users] @ [users, seeds] -> [n, seeds], then weighed by the seeds' draws.
            sums = ((of_users @ filled) * of_seeds).sum(axis=1)
            counts = ((of_users @ known) * of_seeds).sum(axis=1)
            means.append(ratio(np.column_stack([sums, counts])))
        return Estimate(value, self._percentiles(np.concatenate(means)))

    def _sums(self, table: Floats) -> Floats:
        """Column sums of `replicates` resamples of the rows: `[replicates, k]`.

        Draws how often each *distinct* row occurs: a million users whose accuracies take a hundred
        values cost no more than a hundred users.
        """
        distinct, counts = np.unique(table, axis=0, return_counts=True)
        shares = counts / len(table)
        rng = np.random.default_rng(self.seed)
        parts = [
            rng.multinomial(len(table), shares, size=size) @ distinct
            for size in self._chunks(len(distinct))
        ]
        return np.concatenate(parts)

    def _chunks(self, width: int) -> list[int]:
        """Sizes of the chunks that make up `replicates` draws of `width` numbers each."""
        size = max(1, min(self.replicates, _CHUNK // width))
        whole, rest = divmod(self.replicates, size)
        return [size] * whole + ([rest] if rest else [])

    def _percentiles(self, replicates: Floats) -> Interval | None:
        finite = replicates[np.isfinite(replicates)]
        if 2 * len(finite) < len(replicates):
            return None
        tail = (1.0 - self.level) / 2.0
        low, high = np.quantile(finite, [tail, 1.0 - tail])
        return Interval(float(low), float(high))


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
            for end, value in estimate.interval._asdict().items():
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

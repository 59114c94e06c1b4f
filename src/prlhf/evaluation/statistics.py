"""Bootstrap intervals: how far a figure would move with other users or other prompts.

All intervals are percentile intervals of the non-parametric bootstrap: whole *units* (users, or
prompts with everything that was answered to them) are drawn with replacement as often as there
are units, and the statistic is computed anew for each draw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]

_CHUNK = 4_000_000
"""Numbers drawn at once, which bounds memory at a few dozen megabytes."""

MAX_UNITS_FOR_MINIMUM = 20_000
"""`Bootstrap.minimum` draws every user's pairs in every replicate; beyond this it is too slow."""


class Interval(NamedTuple):
    """The two ends of a confidence interval."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A figure with its interval; `interval` is None where one unit gives none."""

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

        With one unit being a prompt, column 0 the sum over its texts and column 1 their number,
        this is the mean over texts with an interval that knows which texts belong together.
        """
        return self.statistic(rows, ratio)

    def statistic(self, rows: ArrayLike, statistic: Callable[[Floats], Floats]) -> Estimate | None:
        """A function of the column sums of `rows` (`[units, k]`).

        Args:
            rows: What each unit adds to each of `k` sums.
            statistic: Maps `[n, k]` sums to `[n]` figures; NaN where there is none.

        Returns:
            None when the figure itself does not exist (no units, or nothing to divide by). The
            interval is None for a single unit, or when most replicates have no figure.
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
        lowest accuracy observed. The least lucky of many users looks worse than it is, so the
        interval tends to lie low rather than high.
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

    def _sums(self, table: Floats) -> Floats:
        """Column sums of `replicates` resamples of the rows: `[replicates, k]`.

        Resampling n rows is drawing how often each *distinct* row occurs, so that a million users
        whose accuracies take a hundred values cost no more than a hundred users.
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

"""Figures with confidence intervals that cover: for other users, other prompts, other seeds.

A figure is a weighted mean over rows (pairs, answers, comparisons) or a smooth function of their
sums. Rows share a user, a prompt or a seed, and what they share moves them together: each such
*factor* is a sample of its own, and two of them are crossed. The variance is that of the sums of
the rows' influence by factor, two-way where there are two (Cameron, Gelbach and Miller, 2011), and
the quantiles are Student's, with Satterthwaite's degrees of freedom and never fewer than the
smaller factor has. Shares get the exact binomial interval at the sample size that this variance
amounts to (Korn and Graubard, 1998), which stays within [0, 1] and has a width even where all rows
are alike.

Percentile intervals of the bootstrap, which are usual here, cover 51, 75, 85 and 91 % at 2, 3, 6
and 20 users where they promise 95.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats: TypeAlias = NDArray[np.float64]
Codes: TypeAlias = NDArray[np.intp]

POWER = 0.8
"""With which probability a difference of the size `Estimate.detectable` says is found."""


class Interval(NamedTuple):
    """The two ends of a confidence interval."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A figure and how sure it is.

    Attributes:
        value: The figure.
        interval: None if it cannot be computed, as for one user.
        error: Its standard error; None without an interval.
        freedom: Degrees of freedom of that error.
    """

    value: float
    interval: Interval | None = None
    error: float | None = None
    freedom: float | None = None

    def detectable(self, level: float) -> float | None:
        """The smallest true difference that such data show with probability `POWER`."""
        if self.error is None or self.freedom is None:
            return None
        needed = stats.t.ppf((1.0 + level) / 2.0, self.freedom) + stats.t.ppf(POWER, self.freedom)
        return float(needed * self.error)


@dataclass(frozen=True)
class Intervals:
    """Makes estimates with intervals of one confidence level.

    In all methods `factors` are one or two columns of labels, `[rows]` each: the samples that rows
    were drawn by. A factor with a single label says nothing about others and is left out; if it is
    the first, there is no interval. Rows whose value is NaN do not count. `weights` are 1 if not
    given, and `sizes` how many pairs each row is a mean of (1 if not given). Without rows there is
    no estimate (None).
    """

    level: float = 0.95

    def mean(
        self, values: ArrayLike, *factors: ArrayLike, weights: ArrayLike | None = None
    ) -> Estimate | None:
        """The mean of an unbounded quantity."""
        rows = _Rows.of(values, factors, weights)
        if rows is None:
            return None
        value = rows.mean
        error = rows.error(rows.values - value)
        return self._symmetric(value, *error) if error else Estimate(value)

    def amount(self, values: ArrayLike, *factors: ArrayLike) -> Estimate | None:
        """The mean of a quantity that is never negative, such as a number of words.

        The interval has equal ratios on both sides: symmetric for the logarithm of the mean (the
        delta method), it never reaches below zero.
        """
        found = self.mean(values, *factors)
        if found is None or found.interval is None or found.value <= 0.0:
            return found
        ratio = float(np.exp((found.interval.high - found.value) / found.value))
        return found._replace(interval=Interval(found.value / ratio, found.value * ratio))

    def share(
        self,
        values: ArrayLike,
        *factors: ArrayLike,
        weights: ArrayLike | None = None,
        sizes: ArrayLike | None = None,
    ) -> Estimate | None:
        """The mean of values within [0, 1], such as accuracies."""
        rows = _Rows.of(values, factors, weights, sizes)
        if rows is None:
            return None
        value = rows.mean
        error = rows.error(rows.values - value)
        if error is None:
            return Estimate(value)
        variance, freedom = error
        # Users differ by their pairs' noise at least, and alike ones prove no certainty.
        size = min(rows.size, value * (1.0 - value) / variance) if variance > 0.0 else rows.size
        ratio = stats.norm.ppf((1.0 + self.level) / 2.0) / self._quantile(freedom)
        deviation = np.sqrt(max(value * (1.0 - value), 0.0) / size)
        return Estimate(value, self.binomial(value, size * ratio**2), float(deviation), freedom)

    def difference(
        self,
        values: ArrayLike,
        *factors: ArrayLike,
        weights: ArrayLike | None = None,
        sizes: ArrayLike | None = None,
        given: ArrayLike | None = None,
    ) -> Estimate | None:
        """The mean of values within [-1, 1], such as differences of accuracies.

        Args:
            given: Labels (of users) that stay as they are: the interval says how far the figure
                would move with other rows of the same labels, each of which counts by its weights.
        """
        rows = _Rows.of(values, factors, weights, sizes, given)
        if rows is None:
            return None
        value = rows.mean
        residuals = rows.centred()
        error = rows.error(residuals)
        if error is None:
            return Estimate(value)
        variance, freedom = error
        # As for shares: a variance that the pairs have by themselves. Where no two differ, half a
        # pair is taken to.
        own = (rows.size * float(rows.weights @ residuals**2) + 0.5) / (rows.size + 1.0)
        estimate = self._symmetric(value, max(variance, own / rows.size), freedom)
        low, high = estimate.interval or (-1.0, 1.0)
        return estimate._replace(interval=Interval(max(low, -1.0), min(high, 1.0)))

    def statistic(
        self, rows: ArrayLike, statistic: Callable[[Floats], Floats], *factors: ArrayLike
    ) -> Estimate | None:
        """A smooth function of the column sums of `rows` that does not depend on their scale.

        Args:
            rows: What each row adds to each of `k` sums, `[rows, k]`.
            statistic: Maps `[n, k]` sums to `[n]` figures; NaN for one that does not exist.
            factors: See above.

        Returns:
            None if the figure itself does not exist. The interval is that of the figure's linear
            part (the delta method).
        """
        table = np.asarray(rows, dtype=np.float64)
        if len(table) == 0:
            return None
        sums = table.sum(axis=0)
        value = float(statistic(sums[None])[0])
        if not np.isfinite(value):
            return None
        step = 1e-5 * np.maximum(np.abs(sums).max(), 1e-12)
        steps = step * np.eye(len(sums))
        slopes = (statistic(sums + steps) - statistic(sums - steps)) / (2.0 * step)
        if not np.isfinite(slopes).all():
            return Estimate(value)
        found = _Rows.of(np.zeros(len(table)), factors)
        error = found.error(len(table) * (table @ slopes)) if found is not None else None
        return self._symmetric(value, *error) if error else Estimate(value)

    def binomial(self, share: float, size: float) -> Interval:
        """The exact interval of a share (Clopper and Pearson, 1934); `size` need not be whole."""
        tail, hits = (1.0 - self.level) / 2.0, share * size
        misses = size - hits
        low = stats.beta.ppf(tail, hits, misses + 1.0) if hits > 0.0 else 0.0
        high = stats.beta.ppf(1.0 - tail, hits + 1.0, misses) if misses > 0.0 else 1.0
        return Interval(float(min(low, share)), float(max(high, share)))

    def _symmetric(self, value: float, variance: float, freedom: float) -> Estimate:
        error = float(np.sqrt(variance))
        half = self._quantile(freedom) * error
        return Estimate(value, Interval(value - half, value + half), error, freedom)

    def _quantile(self, freedom: float) -> float:
        return float(stats.t.ppf((1.0 + self.level) / 2.0, freedom))


@dataclass(frozen=True)
class _Rows:
    """The rows of a mean: `weights` sum to 1, `size` is how many equal pairs they amount to."""

    values: Floats
    weights: Floats
    factors: Sequence[Codes]
    size: float
    given: Codes | None

    @classmethod
    def of(
        cls,
        values: ArrayLike,
        factors: Sequence[ArrayLike],
        weights: ArrayLike | None = None,
        sizes: ArrayLike | None = None,
        given: ArrayLike | None = None,
    ) -> "_Rows | None":
        column = np.asarray(values, dtype=np.float64)
        known = np.isfinite(column)
        if not known.any():
            return None
        ones = np.ones(len(column))
        weight = np.asarray(ones if weights is None else weights, dtype=np.float64)[known]
        size = np.asarray(ones if sizes is None else sizes, dtype=np.float64)[known]
        weight = weight / weight.sum()
        codes = [pd.factorize(np.asarray(each)[known])[0] for each in factors]
        kept = None if given is None else pd.factorize(np.asarray(given)[known])[0]
        return cls(column[known], weight, codes, float(1.0 / (weight**2 / size).sum()), kept)

    @property
    def mean(self) -> float:
        return float(self.weights @ self.values)

    def centred(self) -> Floats:
        """Values less their mean: that of their own label if labels are given."""
        if self.given is None:
            return self.values - self.mean
        totals = np.bincount(self.given, weights=self.weights)
        means = np.bincount(self.given, weights=self.weights * self.values) / totals
        counts = np.bincount(self.given)
        # A mean of few rows lies too close to each of them; that of one row tells nothing.
        stretch = np.sqrt(counts / np.maximum(counts - 1, 1))[self.given]
        alone = (counts == 1)[self.given]
        own = stretch * (self.values - means[self.given])
        return np.where(alone, self.values - self.mean, own)

    def error(self, residuals: Floats) -> tuple[float, float] | None:
        """Variance of the weighted sum of residuals, and its degrees of freedom."""
        # What rounding leaves of zero would count as differences.
        scale = max(1.0, float(np.abs(self.values).max()))
        influence = self.weights * np.where(np.abs(residuals) > 1e-12 * scale, residuals, 0.0)
        parts = [(_squares(influence, each), int(each.max()) + 1) for each in self.factors]
        if not parts or parts[0][1] < 2:
            return None
        known = [(squares * n / (n - 1), n - 1) for squares, n in parts if n > 1]
        largest = max(variance for variance, _ in known)
        total = sum(variance for variance, _ in known)
        if len(known) > 1:
            # What one user and one prompt share was counted with both.
            both = self.factors[0] * (int(self.factors[1].max()) + 1) + self.factors[1]
            total = max(total - _squares(influence, pd.factorize(both)[0]), largest)
        fewest = min(freedom for _, freedom in known)
        spread = sum(variance**2 / freedom for variance, freedom in known)
        return total, max(total**2 / spread, fewest) if spread > 0.0 else float(fewest)


def _squares(influence: Floats, codes: Codes) -> float:
    """The sum of squares of the influence's sums by label."""
    return float((np.bincount(codes, weights=influence) ** 2).sum())

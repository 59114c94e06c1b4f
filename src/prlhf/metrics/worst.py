"""Who is served worst: the worst user, and the worst tenth of users without the luck of the draw.

The lowest of many accuracies is an extreme value: of ten thousand users who are all served at 0.8,
some have ten wrong of a few pairs. Shrunken accuracies do not have that fault. Each user's true
accuracy is taken to be drawn from a beta distribution fitted to all of them (maximum likelihood of
the beta-binomial, Kleinman 1973), and what is known of a user is the posterior.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import optimize, special

from prlhf.metrics.intervals import Estimate, Floats, Intervals

TENTH = 0.1
MIN_USERS = 10
"""Of fewer users, a tenth is nobody."""

MAX_CONCENTRATION = 1e5
"""Of the fitted beta distribution; at this value all users are as good as equal."""


class ShrunkenAccuracies(NamedTuple):
    """What is known of each user's true accuracy.

    Attributes:
        mean, variance: Of each given the fitted beta distribution, `[users]`.
        slopes: Of the means in that distribution's logit mean and log concentration, `[users, 2]`.
        covariance: Of these two as fitted, `[2, 2]`.
    """

    mean: Floats
    variance: Floats
    slopes: Floats
    covariance: Floats

    def average(self, weights: Floats) -> tuple[float, float]:
        """A weighted mean over users and its variance, with that of the fit (Kass, Steffey 1989).

        Args:
            weights: `[users]`, which sum to 1.
        """
        slope = weights @ self.slopes
        spread = weights**2 @ self.variance + slope @ self.covariance @ slope
        return float(weights @ self.mean), float(spread)


def shrink(hits: ArrayLike, pairs: ArrayLike) -> ShrunkenAccuracies:
    """What is known of each user's accuracy, given everybody's.

    Args:
        hits: Pairs predicted right, ties counted half, `[users]`.
        pairs: Pairs of each user, at least one, `[users]`.
    """
    k, n = np.asarray(hits, dtype=np.float64), np.asarray(pairs, dtype=np.float64)
    # Many users have the same counts: each is looked at once.
    (hit, size), counts = np.unique(np.stack([k, n]), axis=1, return_counts=True)

    def loss(point: Floats) -> tuple[float, Floats]:
        mean, total = special.expit(point[0]), np.exp(point[1])
        a, b = mean * total, (1.0 - mean) * total
        value = counts @ (special.betaln(hit + a, size - hit + b) - special.betaln(a, b))
        shared = special.digamma(total) - special.digamma(size + total)
        by_a = counts @ (special.digamma(hit + a) - special.digamma(a) + shared)
        by_b = counts @ (special.digamma(size - hit + b) - special.digamma(b) + shared)
        by_mean = (by_a - by_b) * total * mean * (1.0 - mean)
        return -float(value), -np.array([by_mean, by_a * a + by_b * b])

    middle = float(np.clip(k.sum() / n.sum(), 0.01, 0.99))
    bounds = [(-10.0, 10.0), (np.log(0.05), np.log(MAX_CONCENTRATION))]
    fits = [
        optimize.minimize(loss, [special.logit(middle), start], jac=True, bounds=bounds)
        for start in np.log([1.0, 30.0, MAX_CONCENTRATION])
    ]
    best = min(fits, key=lambda fit: float(fit.fun)).x
    mean, total = special.expit(best[0]), np.exp(best[1])
    found = (k + mean * total) / (n + total)
    kept = total / (n + total)
    slopes = np.stack([kept * mean * (1.0 - mean), kept * (mean - found)], axis=1)
    steps = 1e-4 * np.eye(2)
    curvature = np.stack([(loss(best + at)[1] - loss(best - at)[1]) / 2e-4 for at in steps])
    # An end of the range is no optimum: nothing is said of its curvature.
    inside = [low + 0.01 < at < high - 0.01 for at, (low, high) in zip(best, bounds, strict=True)]
    free = np.ix_(inside, inside)
    covariance = np.zeros((2, 2))
    covariance[free] = np.linalg.pinv((curvature + curvature.T)[free] / 2.0, hermitian=True)
    return ShrunkenAccuracies(found, found * (1.0 - found) / (n + total + 1.0), slopes, covariance)


def worst_user(intervals: Intervals, users: pd.DataFrame) -> Estimate | None:
    """The lowest accuracy of any user, with the interval of that user's own pairs.

    Of several, the one with most pairs. The unluckiest of many users looks worse than they are.

    Args:
        intervals: Makes the interval.
        users: Columns `wins, ties, losses`, of each user.
    """
    hits, pairs = _counted(users)
    if len(pairs) == 0:
        return None
    accuracy = hits / pairs
    row = np.lexsort((-pairs, accuracy))[0]
    lowest = float(accuracy[row])
    return Estimate(lowest, intervals.binomial(lowest, float(pairs[row])))


def worst_tenth(intervals: Intervals, users: pd.DataFrame) -> Estimate | None:
    """The mean of the lowest tenth of shrunken accuracies; None for fewer than `MIN_USERS`.

    The last user counts in part where a tenth is not a whole number. The interval is for these
    users and other pairs.

    Args:
        intervals: Makes the interval.
        users: Columns `wins, ties, losses`, of each user.
    """
    hits, pairs = _counted(users)
    if len(pairs) < MIN_USERS:
        return None
    known = shrink(hits, pairs)
    tenth = TENTH * len(pairs)
    weights = np.empty(len(pairs))
    ranks = np.argsort(known.mean, kind="stable")
    weights[ranks] = np.clip(tenth - np.arange(len(pairs)), 0.0, 1.0) / tenth
    value, variance = known.average(weights)
    size = min(value * (1.0 - value) / variance, float(pairs.sum()))
    return Estimate(value, intervals.binomial(value, size), float(np.sqrt(variance)))


def lowest_tenth(users: pd.DataFrame) -> pd.Series:
    """The ids of the tenth of users, rounded up, with the lowest shrunken accuracies.

    Args:
        users: Columns `user_id, wins, ties, losses`, of each user.
    """
    users = users[users[["wins", "ties", "losses"]].sum(axis=1) > 0]
    if len(users) < MIN_USERS:
        return users["user_id"].head(0)
    order = np.argsort(shrink(*_counted(users)).mean, kind="stable")
    return users["user_id"].iloc[order[: int(np.ceil(TENTH * len(users)))]]


def _counted(users: pd.DataFrame) -> tuple[Floats, Floats]:
    """Hits and pairs of the users who have any."""
    hits = (users["wins"] + users["ties"] / 2).to_numpy(dtype=np.float64)
    pairs = users[["wins", "ties", "losses"]].sum(axis=1).to_numpy(dtype=np.float64)
    return hits[pairs > 0], pairs[pairs > 0]

"""Intervals for figures of the same users under several seeds.

Users and seeds are crossed: every user occurs under every seed. The bootstrap draws both, each with
replacement and independently of the other, and a user's figure under a seed counts as often as its
user was drawn times its seed was drawn (the pigeonhole bootstrap, Owen 2007). So intervals say how
far a figure would move with other users and other seeds; with one seed they are the intervals over
users of `prlhf.evaluation.statistics`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from prlhf.evaluation.statistics import Bootstrap, Estimate, Interval

_CHUNK = 4_000_000
"""Numbers drawn at once, which bounds memory at a few dozen megabytes."""


def crossed_mean(values: ArrayLike, bootstrap: Bootstrap) -> Estimate | None:
    """The mean of a table of users and seeds, with its interval.

    Args:
        values: float [users, seeds]; NaN where a user has no figure under a seed.
        bootstrap: Seed, number of replicates and level.

    Returns:
        None without a figure. The interval is None for a single user: seeds alone do not say how
        another user would fare.
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
    rng = np.random.default_rng(bootstrap.seed)
    means = []
    left = bootstrap.replicates
    while left > 0:
        size = max(1, min(left, _CHUNK // users))
        of_users = rng.multinomial(users, np.full(users, 1 / users), size=size)
        of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=size)
        # [n, users] @ [users, seeds] -> [n, seeds], then weighed by the seeds' draws.
        sums = ((of_users @ filled) * of_seeds).sum(axis=1)
        counts = ((of_users @ known) * of_seeds).sum(axis=1)
        means.append(np.divide(sums, counts, out=np.full(size, np.nan), where=counts > 0))
        left -= size
    drawn = np.concatenate(means)
    tail = (1.0 - bootstrap.level) / 2.0
    low, high = np.nanquantile(drawn, [tail, 1.0 - tail])
    return Estimate(value, Interval(float(low), float(high)))

"""Random choices that stay put: each has a stream of its own, derived from the run's seed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prlhf.io import content_hash

if TYPE_CHECKING:
    import numpy as np


def generator(seed: int, *purpose: str) -> np.random.Generator:
    """A generator whose draws depend on `seed` and `purpose` only.

    Streams of different purposes are independent, so one choice more or less (another user, say)
    does not reshuffle the others.
    """
    import numpy as np

    return np.random.default_rng([seed, int(content_hash(*purpose), 16)])


def shuffled(names: Iterable[str], seed: int, purpose: str) -> list[str]:
    """Distinct `names` in a random order in which any two keep their places when others come or go.

    Names are ordered by a hash of seed, purpose and name. A permutation drawn from a generator
    would be as random, but a single new name would change it throughout.
    """
    return sorted(set(names), key=lambda name: (content_hash(str(seed), purpose, name), name))

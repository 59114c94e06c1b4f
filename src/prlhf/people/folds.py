"""Parts of the pairs for cross-validation, as far apart as the real split is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from prlhf.people.features import Integers

LARGE = 8
"""Units in each part from which on what is connected is cut in itself."""


class FoldRows(NamedTuple):
    """Positions of the pairs that are learned from, and of those that are predicted, int64."""

    train: Integers
    test: Integers


def fold_rows(units: Integers, count: int, rng: np.random.Generator) -> list[FoldRows]:
    """Divide pairs by their units; a fold with nothing to learn from or to predict is left out.

    A pair is predicted in the fold that all its units are in, and learned from in the folds that
    none of them is in.

    Args:
        units: of each pair, int64 [P, S], at least 0.
        count: folds.
        rng: deals out the units.
    """
    part = _parts(units, count, rng)[units]
    found = (
        FoldRows(np.flatnonzero((part != k).all(1)), np.flatnonzero((part == k).all(1)))
        for k in range(count)
    )
    return [fold for fold in found if len(fold.train) and len(fold.test)]


def _parts(units: Integers, count: int, rng: np.random.Generator) -> Integers:
    """The part of each unit. Units that share a pair are kept together where sizes allow."""
    names, places = np.unique(units, return_inverse=True)
    places = places.reshape(units.shape)
    order = rng.permutation(len(names))
    part = np.full(len(names), -1)
    if units.shape[1] == 1:
        part[order] = np.arange(len(names)) % count
    else:
        _cut(places, part, count, order)
    parts = np.full(int(units.max(initial=0)) + 1, -1)
    parts[names] = part
    return parts


def _cut(places: Integers, part: Integers, count: int, order: Integers) -> None:
    """Linear deterministic greedy: each unit to the part with most neighbours, less full ones.

    What is connected and large is cut in itself: its people may have judged nothing else, and would
    be strangers wherever they are predicted.
    """
    first, second = (places[:, ends].ravel() for ends in ((0, 1), (1, 0)))
    size = (len(part), len(part))
    graph = coo_array((np.ones(len(first)), (first, second)), shape=size).tocsr()
    _, island = connected_components(graph)
    members = np.bincount(island)
    large = members >= LARGE * count
    # Small islands share one capacity.
    sea = np.where(large[island], island + 1, 0)
    capacity = np.ceil(np.bincount(sea) / count)
    sizes = np.zeros((len(capacity), count))
    for unit in order:
        near = slice(graph.indptr[unit], graph.indptr[unit + 1])
        placed = part[graph.indices[near]]
        known = placed >= 0
        shared = np.bincount(placed[known], graph.data[near][known], count)
        room = 1 - sizes[sea[unit]] / capacity[sea[unit]]
        part[unit] = int(((shared + 1e-6) * room).argmax())
        sizes[sea[unit], part[unit]] += 1

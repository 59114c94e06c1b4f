"""Texts divided so that few pairs lie between two parts.

Texts are the nodes of a graph and pairs its edges. What hangs together little is cut there; where
everything hangs together, parts are grown from one text to the next, always by the one that brings
the fewest pairs between parts with it.
"""

import heapq
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

Numbers = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]

SEEDS: Final = 4
"""Places that a side of a component is grown from.

With one, fewer pairs are lost, but a side is one corner of the graph, whose people have no pairs on
the other sides. Of 59,997 votes on statements (means of five seeds), one place kept 86 % and gave
66 % of the people both training and test pairs, four kept 82 % and gave 85 %; texts on sides at
random kept 53 %, a twelfth of it for testing, and gave 62 %.
"""

UNITS: Final = 10
"""Parts that what is on one side is divided into, for those who divide it further."""

FEWEST: Final = 6
"""Texts of the smallest component that is cut: two for each side."""


def text_sides(
    first: Numbers, second: Numbers, users: Numbers, *, validation: float, test: float
) -> Numbers:
    """The side of each text: 0 for training, 1 for validation, 2 for test.

    Components of the graph stay whole where they are smaller than the test side and their people
    have most of their pairs in others; each goes to the side that lacks most. All others are cut,
    so that the people of each have pairs on all sides.

    Args:
        first, second: The two texts of each pair [P], numbers from 0 in an order that is random
            but for the texts themselves.
        users: Who judged each pair [P], numbers from 0.
        validation, test: Shares of the pairs within a side.

    Returns:
        A side for each number up to the largest [T].
    """
    parts = _Components.of(first, second, users, largest=test)
    sides = np.zeros(parts.size, np.int64)
    lacking = np.array([1 - validation - test, validation, test]) * parts.pairs[~parts.cut].sum()
    for number, nodes in enumerate(parts.nodes):
        if parts.cut[number]:
            graph = parts.graph(number)
            held_out = _grown(graph, np.ones(len(nodes), np.bool_), test, SEEDS)
            validated = _grown(graph, ~held_out, validation / (1 - test), SEEDS)
            sides[nodes[held_out]], sides[nodes[validated]] = 2, 1
        else:
            # Of equal ones the last: a small side that gets nothing now gets nothing at all.
            side = 2 - int(np.argmax(lacking[::-1]))
            sides[nodes] = side
            lacking[side] -= parts.pairs[number]
    return sides


def text_units(first: Numbers, second: Numbers, users: Numbers, *, largest: float) -> Numbers:
    """A part for each text, by number; pairs between parts belong to none.

    Components stay whole as in `text_sides`, and are cut into `UNITS` parts otherwise.

    Args:
        first, second, users: As in `text_sides`, of pairs that are on a side.
        largest: Share of the pairs above which a component is cut.
    """
    parts = _Components.of(first, second, users, largest=largest)
    units = np.zeros(parts.size, np.int64)
    found = 0
    for number, nodes in enumerate(parts.nodes):
        if parts.cut[number]:
            graph, left = parts.graph(number), np.ones(len(nodes), np.bool_)
            for more in range(UNITS - 1, 0, -1):
                grown = _grown(graph, left, 1 / (more + 1), 1)
                units[nodes[grown]] = found
                found += 1
                left &= ~grown
            nodes = nodes[left]
        units[nodes] = found
        found += 1
    return units


@dataclass(frozen=True)
class _Components:
    """What of the texts hangs together.

    Attributes:
        nodes: The texts of each component, ascending.
        pairs: How many pairs each has.
        cut: Which of them must be cut: those with more than a share of the pairs, and those whose
            people have more of their pairs there than elsewhere; but none that is too small for it.
        whole: The graph of all, with the texts of a component next to each other: how many pairs
            there are of each two texts, both ways.
        starts: Where each component begins in it.
    """

    nodes: list[Numbers]
    pairs: Numbers
    cut: Flags
    whole: csr_array
    starts: Numbers

    @classmethod
    def of(cls, first: Numbers, second: Numbers, users: Numbers, *, largest: float) -> Self:
        size = int(max(first.max(), second.max())) + 1
        ends = np.concatenate([first, second]), np.concatenate([second, first])
        graph = coo_array((np.ones(len(ends[0])), ends), (size, size)).tocsr()
        count, component = connected_components(graph, directed=False)
        order = np.argsort(component, kind="stable")
        sizes = np.bincount(component, minlength=count)
        starts = np.concatenate([[0], np.cumsum(sizes)])

        of_pair = component[first]
        pairs = np.bincount(of_pair, minlength=count)
        _, there, n_there = np.unique(
            users * count + of_pair, return_inverse=True, return_counts=True
        )
        at_home = n_there[there] / np.bincount(users)[users]
        mostly_home = np.bincount(of_pair, at_home, minlength=count) > 0.5 * pairs
        cut = (sizes >= FEWEST) & (mostly_home | (pairs > largest * len(first)))
        whole = graph[order][:, order]
        return cls(np.split(order, starts[1:-1]), pairs, cut, whole, starts)

    @property
    def size(self) -> int:
        return self.whole.shape[0]

    def graph(self, number: int) -> csr_array:
        """The graph of one component, its texts numbered as in `nodes`."""
        start, end = self.starts[number : number + 2]
        offsets = self.whole.indptr[start : end + 1]
        inner = slice(offsets[0], offsets[-1])
        data, columns = self.whole.data[inner], self.whole.indices[inner] - start
        return csr_array((data, columns, offsets - offsets[0]), (end - start, end - start))


def _grown(graph: csr_array, free: Flags, share: float, seeds: int) -> Flags:
    """Take a part out of the `free` texts [T].

    It grows by the text with the largest share of its pairs into it, until it has its share of the
    pairs that are within it or within the rest. After each of `seeds` parts of that it goes on from
    the next text in order.
    """
    part = np.zeros(len(free), np.bool_)
    degree = np.where(free, graph @ free.astype("float64"), 0)
    total = degree.sum() / 2
    within = touched = begun = 0.0
    linked = np.zeros(len(free))
    waiting: list[tuple[float, int]] = []
    order = iter(np.flatnonzero(degree).tolist())
    while within < share * (total - touched + 2 * within):
        if within - begun >= share * total / seeds:
            begun, waiting = within, []
        node = None
        while waiting and node is None:
            key, candidate = heapq.heappop(waiting)
            if not part[candidate] and key == -linked[candidate] / degree[candidate]:
                node = candidate
        if node is None:
            node = next((each for each in order if not part[each]), None)
            if node is None:
                break
        part[node] = True
        within += linked[node]
        touched += degree[node]
        span = slice(graph.indptr[node], graph.indptr[node + 1])
        around = zip(graph.indices[span].tolist(), graph.data[span].tolist(), strict=True)
        for other, weight in around:
            if free[other] and not part[other]:
                linked[other] += weight
                heapq.heappush(waiting, (-linked[other] / degree[other], other))
    return part

"""In which order pairs are visited, and which term of the objective each visit computes.

Everything here depends on the seed, the epoch and the pair's position alone, never on a global
random state: a resumed run, each of several processes, and gradient accumulation see the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from prlhf.data.randomness import generator
from prlhf.training.pairs import Pair

WINDOW = 32
"""Batches' worth of shuffled pairs among which those of similar length are put together."""


class Visit(NamedTuple):
    """A pair's turn in an epoch: its position, and the term to compute (None for both)."""

    pair: int
    as_user: bool | None


FILLER = -1
"""The position of a pair that counts for nothing."""


def without_weight(pair: Pair) -> Pair:
    """A pair that changes neither gradients nor means."""
    return replace(pair, weight=0.0)


class VisitedPairs(Dataset[Pair]):
    """Pairs by `Visit`, as `PairOrder` hands them to a `DataLoader`."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, visit: Visit) -> Pair:
        pair = without_weight(self.pairs[0]) if visit.pair == FILLER else self.pairs[visit.pair]
        return replace(pair, as_user=visit.as_user)


class PairOrder(Sampler[Visit]):
    """All pairs once an epoch, shuffled anew each time.

    Args:
        pairs: how many there are.
        seed: seed of the order and of the terms.
        epoch: the epoch that begins, counted from 0; asked whenever an iteration starts.
        alpha: with this probability a visit computes the pair's personalised term, else the
            generic user's; None for both of them at each visit.
        lengths: how long each pair is, in any unit, for batches of similar length; None for any
            order.
        batch: pairs that are padded together.
        whole: an epoch is filled up to a multiple of this with pairs of weight 0: of several
            processes each gets as many batches. accelerate would repeat pairs of the epoch's
            beginning, and the last step would not be what it is in one process.
    """

    def __init__(
        self,
        pairs: int,
        *,
        seed: int,
        epoch: Callable[[], int],
        alpha: float | None = None,
        lengths: Sequence[int] | None = None,
        batch: int = 1,
        whole: int = 1,
    ) -> None:
        self.pairs = pairs
        self.seed = seed
        self.epoch = epoch
        self.alpha = alpha
        self.lengths = lengths
        self.batch = batch
        self.whole = whole

    def __len__(self) -> int:
        return self.pairs + -self.pairs % self.whole

    def __iter__(self) -> Iterator[Visit]:
        epoch = self.epoch()
        order = shuffled(self.pairs, self.seed, epoch)
        if self.lengths is not None:
            order = bucketed(order, self.lengths, self.batch, self.seed, epoch)
        if self.alpha is None:
            visits = [Visit(pair, None) for pair in order]
        else:
            terms = drawn_terms(self.pairs, self.alpha, self.seed, epoch)
            visits = [Visit(pair, terms[pair]) for pair in order]
        filler = visits[0]._replace(pair=FILLER)
        return iter([*visits, *[filler] * (len(self) - self.pairs)])


def shuffled(pairs: int, seed: int, epoch: int) -> list[int]:
    """Positions of `pairs` pairs in the random order of an epoch."""
    # Accelerate's own shuffling of an epoch.
    return torch.randperm(pairs, generator=torch.Generator().manual_seed(seed + epoch)).tolist()


def drawn_terms(pairs: int, alpha: float, seed: int, epoch: int) -> list[bool]:
    """Whether each pair's one term of an epoch is the personalised one.

    It is with probability `alpha`, independently. Each drawn term has the weight 1, so that its
    expectation is `alpha * user + (1 - alpha) * generic`, the objective of the pair, and the mean
    over a batch is an unbiased estimate of the batch's objective and of its gradient.
    """
    draws = generator(seed, "terms", str(epoch)).random(pairs)
    return [bool(draw) for draw in draws < alpha]


def bucketed(
    order: Sequence[int], lengths: Sequence[int], batch: int, seed: int, epoch: int
) -> list[int]:
    """A random order in batches of pairs of similar length, which come in random order.

    Pairs move within a window of `WINDOW` batches. Every pair still comes once an epoch, anywhere
    in it; what changes is in whose company. What does not fill a batch stays at the end.

    Args:
        order: positions, shuffled.
        lengths: by position, in any unit.
        batch: pairs of a batch.
        seed, epoch: of the order of the batches.
    """
    whole = len(order) - len(order) % batch
    draw = generator(seed, "buckets", str(epoch))
    arranged: list[int] = []
    for start in range(0, whole, WINDOW * batch):
        window = np.array(order[start : min(start + WINDOW * batch, whole)])
        # Among equals the shuffled order decides.
        by_length = window[np.argsort([lengths[pair] for pair in window], kind="stable")]
        arranged += draw.permutation(by_length.reshape(-1, batch)).reshape(-1).tolist()
    return [*arranged, *order[whole:]]

"""In which order pairs are visited, and which term of the objective each visit computes.

Everything here depends on the seed, the epoch and the pair's position alone, never on a global
random state: a resumed run, each of several processes, and gradient accumulation see the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from prlhf.data.randomness import generator
from prlhf.training.pairs import Pair


class Visit(NamedTuple):
    """A pair's turn in an epoch: its position, and the term to compute (None for both)."""

    pair: int
    as_user: bool | None


class VisitedPairs(Dataset[Pair]):
    """Pairs by `Visit`, as `PairOrder` hands them to a `DataLoader`."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = list(pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, visit: Visit) -> Pair:
        return replace(self.pairs[visit.pair], as_user=visit.as_user)


class PairOrder(Sampler[Visit]):
    """All pairs once an epoch, shuffled anew each time.

    Args:
        pairs: how many there are.
        seed: seed of the order and of the terms.
        epoch: the epoch that begins, counted from 0; asked whenever an iteration starts.
        alpha: with this probability a visit computes the pair's personalised term, else the
            generic user's; None for both of them at each visit.
    """

    def __init__(
        self, pairs: int, *, seed: int, epoch: Callable[[], int], alpha: float | None = None
    ) -> None:
        self.pairs = pairs
        self.seed = seed
        self.epoch = epoch
        self.alpha = alpha

    def __len__(self) -> int:
        return self.pairs

    def __iter__(self) -> Iterator[Visit]:
        epoch = self.epoch()
        order = shuffled(self.pairs, self.seed, epoch).tolist()
        if self.alpha is None:
            return (Visit(pair, None) for pair in order)
        terms = drawn_terms(self.pairs, self.alpha, self.seed, epoch).tolist()
        return (Visit(pair, terms[pair]) for pair in order)


def shuffled(pairs: int, seed: int, epoch: int) -> Tensor:
    """Positions of `pairs` pairs in the random order of an epoch, int64 [pairs]."""
    # Accelerate's own shuffling of an epoch.
    return torch.randperm(pairs, generator=torch.Generator().manual_seed(seed + epoch))


def drawn_terms(pairs: int, alpha: float, seed: int, epoch: int) -> Tensor:
    """Whether each pair's one term of an epoch is the personalised one: bool [pairs].

    It is with probability `alpha`, independently. Each drawn term has the weight 1, so that its
    expectation is `alpha * user + (1 - alpha) * generic`, the objective of the pair, and the mean
    over a batch is an unbiased estimate of the batch's objective and of its gradient.
    """
    draws = generator(seed, "terms", str(epoch)).random(pairs)
    return torch.from_numpy(draws < alpha)

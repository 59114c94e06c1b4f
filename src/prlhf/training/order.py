"""The order in which training examples are visited.

The order and the drawn terms depend on the seed, the epoch and the example's position only, never
on a global random state: they are the same in a resumed run, in each of several processes and with
any gradient accumulation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from prlhf.data.ids import generator
from prlhf.training.dataset import PreferenceExample

WINDOW: Final = 32
"""Number of batches of shuffled examples within which those of similar length are put together."""

FILLER: Final = -1
"""In a `Visit`, the position of an example without weight."""


class Visit(NamedTuple):
    """An example's turn in an epoch: its position, and the term to compute (None for both)."""

    position: int
    as_user: bool | None


class VisitedExamples(Dataset[PreferenceExample]):
    """Examples by `Visit`, as `PreferenceSampler` hands them to a `DataLoader`."""

    def __init__(self, examples: Sequence[PreferenceExample]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, visit: Visit) -> PreferenceExample:
        if visit.position == FILLER:
            example = self.examples[0].without_weight()
        else:
            example = self.examples[visit.position]
        return replace(example, as_user=visit.as_user)


class PreferenceSampler(Sampler[Visit]):
    """All examples once an epoch, or as `balance` has it, shuffled anew each time.

    Args:
        users: the user of each example.
        seed: seed of the order and of the terms.
        epoch: returns the epoch that begins, counted from 0; called at the start of an iteration.
        balance: an example of a user with n examples is visited in proportion to n^-balance; 0 to
            visit each once.
        alpha: with this probability a visit computes the example's personalised term, otherwise
            the generic user's; None to compute both at each visit.
        lengths: how long each example is, in any unit, for batches of similar length; None for any
            order.
        batch: examples that are padded together.
        whole: an epoch is filled up to a multiple of this with examples of weight 0, so that each
            of several processes gets as many batches. (accelerate would repeat examples of the
            epoch's beginning, and the last step would differ from that of one process.)
    """

    def __init__(
        self,
        users: Sequence[int],
        *,
        seed: int,
        epoch: Callable[[], int],
        balance: float = 0.0,
        alpha: float | None = None,
        lengths: Sequence[int] | None = None,
        batch: int = 1,
        whole: int = 1,
    ) -> None:
        self.users = users
        self.examples = len(users)
        self.seed = seed
        self.epoch = epoch
        self.balance = balance
        self.alpha = alpha
        self.lengths = lengths
        self.batch = batch
        self.whole = whole

    def __len__(self) -> int:
        return self.examples + -self.examples % self.whole

    def order(self, epoch: int) -> list[int]:
        """The positions that an epoch visits, in order; as many as there are examples."""
        if self.balance > 0:
            order = balanced_order(self.users, self.balance, self.seed, epoch)
        else:
            order = epoch_order(self.examples, self.seed, epoch)
        if self.lengths is not None:
            order = bucketed(order, self.lengths, self.batch, self.seed, epoch)
        return order

    def __iter__(self) -> Iterator[Visit]:
        epoch = self.epoch()
        order = self.order(epoch)
        if self.alpha is None:
            visits = [Visit(position, None) for position in order]
        else:
            terms = drawn_terms(self.examples, self.alpha, self.seed, epoch)
            visits = [Visit(position, terms[position]) for position in order]
        filler = visits[0]._replace(position=FILLER)
        return iter([*visits, *[filler] * (len(self) - self.examples)])


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The positions 0 .. count - 1 in the random order of an epoch, that of accelerate."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch)).tolist()


def balanced_order(users: Sequence[int], balance: float, seed: int, epoch: int) -> list[int]:
    """As many positions as there are examples, in random order, users balanced against each other.

    An example of a user with n examples is expected `c ~ n^-balance` times, and comes either
    `floor(c)` or `ceil(c)` times; a user's examples together are within one visit of what is
    expected of them (systematic sampling, one user after the other).

    Args:
        users: the user of each example.
        balance: 0: every example once; 1: every user as often.
        seed, epoch: of the order.
    """
    draw = generator(seed, "balance", str(epoch))
    shuffled = draw.permutation(len(users))
    by_user = shuffled[np.argsort(np.asarray(users)[shuffled], kind="stable")]
    _, own, counts = np.unique(users, return_inverse=True, return_counts=True)
    wanted = counts[own[by_user]] ** -balance
    reached = np.cumsum(wanted) * (len(users) / wanted.sum())
    reached[-1] = len(users)  # not a rounding error less
    times = np.diff(np.floor(reached + draw.random()), prepend=0.0).astype(int)
    visits: list[int] = draw.permutation(np.repeat(by_user, times)).tolist()
    return visits


def drawn_terms(count: int, alpha: float, seed: int, epoch: int) -> list[bool]:
    """For each example, whether its one term of an epoch is the personalised one.

    Independently it is with probability `alpha`. A drawn term has weight 1, so that its expectation
    is `alpha * user + (1 - alpha) * generic`, the objective of the pair, and the mean over a batch
    is an unbiased estimate of the batch's objective and of its gradient.
    """
    draws = generator(seed, "terms", str(epoch)).random(count)
    return [bool(draw) for draw in draws < alpha]


def bucketed(
    order: Sequence[int], lengths: Sequence[int], batch: int, seed: int, epoch: int
) -> list[int]:
    """A random order in which batches hold examples of similar length and come in random order.

    Examples move within a window of `WINDOW` batches, so every example still comes once an epoch,
    anywhere in it. The last examples, if they do not fill a batch, stay at the end.

    Args:
        order: positions, shuffled.
        lengths: by position, in any unit.
        batch: examples in a batch.
        seed, epoch: of the order of the batches.
    """
    whole = len(order) - len(order) % batch
    draw = generator(seed, "buckets", str(epoch))
    arranged: list[int] = []
    for start in range(0, whole, WINDOW * batch):
        window = np.array(order[start : min(start + WINDOW * batch, whole)])
        # A stable sort keeps the shuffled order among examples of the same length.
        by_length = window[np.argsort([lengths[i] for i in window], kind="stable")]
        arranged += draw.permutation(by_length.reshape(-1, batch)).reshape(-1).tolist()
    return [*arranged, *order[whole:]]

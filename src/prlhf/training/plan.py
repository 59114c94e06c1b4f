"""What a training run does, worked out from the parameters and the data in hand.

How many steps of how many pairs, with which learning rate, and when it looks at its validation
pairs; how much of the data it sees, and what to say when that is little.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from prlhf.data import GENERIC
from prlhf.data.ids import generator
from prlhf.infra import distributed
from prlhf.infra.errors import UserError
from prlhf.params import OptimizerParams
from prlhf.training.dataset import PreferenceExample, users_of
from prlhf.training.order import PreferenceSampler

BATCHES: Final = (4, 8, 16, 32)
"""What `batch_size: auto` chooses from: the largest that leaves `EPOCH` steps an epoch."""
EPOCH: Final = 100

LORA_LR: Final = 1e-3
LORA_WIDTH: Final = 576
"""`lora_lr: auto` is `LORA_LR` at this width, and falls as 1 / width.

So it does in the maximal update parametrisation for Adam (arXiv:2203.03466). The rate was found on
SmolLM2-135M; at widths of 4096 and 5120 it gives 1.4e-4 and 1.1e-4, where QLoRA (arXiv:2305.14314)
trains models of 7 and 13 billion parameters with 2e-4.
"""

UNSAVED: Final = 500
"""Steps that a killed run loses at most."""

FEW_STEPS: Final = 20
"""A run of fewer steps hardly leaves its start: the learning rates rise and fall within them."""
LITTLE: Final = 0.5
"""A run that sees a smaller share of its pairs is warned of."""


@dataclass(frozen=True)
class Plan:
    """The numbers of a run.

    Attributes:
        batch_size: pairs per optimiser step, in all processes together.
        micro_batch_size: pairs per forward pass in one process.
        steps: optimiser steps.
        eval_every, checkpoint_every: steps between two validations, and two checkpoints.
        eval_pairs: validation pairs looked at each time, at most; None for all.
        lora_lr: learning rate of the adapter.
    """

    batch_size: int
    micro_batch_size: int
    steps: int
    eval_every: int
    checkpoint_every: int
    eval_pairs: int | None
    lora_lr: float


def make_plan(optimizer: OptimizerParams, *, pairs: int, width: int) -> Plan:
    """Work out the numbers of a run on `pairs` training pairs, for a model of this width.

    Raises:
        UserError: there are more processes than a batch chosen by `auto` has pairs.
    """
    processes = distributed.world_size()
    batch_size, micro_batch_size = optimizer.batch_size, optimizer.micro_batch_size
    if not isinstance(batch_size, int):
        batch_size = _batch_for(pairs)
        if batch_size < processes:
            raise UserError(
                f"auto makes it {batch_size} for {pairs} training pairs, fewer than there are "
                f"processes ({processes})",
                where="params.yaml: optimizer.batch_size",
                fix="give a number, or lower launch.processes",
            )
        micro_batch_size = min(micro_batch_size, batch_size // processes)
    # Hugging Face's own `max_steps` would go on with a further epoch.
    steps = _share(optimizer.epochs, math.ceil(pairs / batch_size))
    if optimizer.max_steps is not None:
        steps = min(steps, optimizer.max_steps)
    eval_every = _share(optimizer.eval_every, steps)
    eval_pairs = optimizer.eval_pairs
    if eval_pairs is not None:
        eval_pairs = min(eval_pairs, max(1, eval_every * batch_size // 2))
    lora_lr = optimizer.lora_lr
    return Plan(
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        steps=steps,
        eval_every=eval_every,
        checkpoint_every=min(_share(optimizer.checkpoint_every, steps), UNSAVED),
        eval_pairs=eval_pairs,
        lora_lr=lora_lr if isinstance(lora_lr, float) else LORA_LR * (LORA_WIDTH / width),
    )


def _batch_for(pairs: int) -> int:
    return max((size for size in BATCHES if pairs >= size * EPOCH), default=BATCHES[0])


def _share(share: float, steps: int) -> int:
    """So many steps, at least: 0.07 of 100 are 7, although 0.07 * 100 is above 7."""
    return max(1, math.ceil(share * steps - 1e-9))


def watched_pairs(
    pairs: Sequence[PreferenceExample], count: int | None, seed: int
) -> list[PreferenceExample]:
    """A fixed random sample of at most `count` pairs (None for all), in their own order.

    No user has two pairs more in it than another one has, unless that other one has no more.
    """
    if count is None or len(pairs) <= count:
        return list(pairs)
    order = generator(seed, "watched").permutation(len(pairs))
    users = pd.Series(users_of(pairs)).iloc[order]
    # Everybody's first pair comes before anybody's second.
    turns = users.groupby(users).cumcount()
    chosen = turns.sort_values(kind="stable").index[:count].sort_values()
    return [pairs[int(i)] for i in chosen]


@dataclass(frozen=True)
class Coverage:
    """How many of the training pairs, and of their users, there are (`all`) and were seen.

    The generic user is not counted.
    """

    all_pairs: int
    seen_pairs: int
    all_users: int
    seen_users: int


def coverage(sampler: PreferenceSampler, steps: int, batch_size: int) -> Coverage:
    """What the first steps of a run see."""
    users = np.asarray(sampler.users)
    seen = np.zeros(len(users), dtype=bool)
    epochs, rest = divmod(steps, math.ceil(len(users) / batch_size))
    for epoch in range(epochs + (rest > 0)):
        if seen.all():
            break
        seen[sampler.order(epoch)[: None if epoch < epochs else rest * batch_size]] = True
    known = users != GENERIC
    return Coverage(
        all_pairs=len(users),
        seen_pairs=int(seen.sum()),
        all_users=len(np.unique(users[known])),
        seen_users=len(np.unique(users[known & seen])),
    )


def doubts(optimizer: OptimizerParams, plan: Plan, seen: Coverage) -> str | None:
    """What to warn of before a run: it is very short, or sees little of the data. None if nothing.

    Args:
        optimizer: the parameters.
        plan: what they give.
        seen: what the whole run will see.
    """
    unseen = seen.all_users - seen.seen_users
    found = [
        *([f"has {plan.steps} steps only"] if plan.steps < FEW_STEPS else []),
        *(
            [f"sees {seen.seen_pairs:,} of {seen.all_pairs:,} training pairs"]
            if seen.seen_pairs < LITTLE * seen.all_pairs
            else []
        ),
        *([f"never sees {unseen:,} of {seen.all_users:,} users"] if unseen else []),
    ]
    if not found:
        return None
    limit = "max_steps" if plan.steps == optimizer.max_steps else "epochs"
    return f"the run {', '.join(found)}: raise optimizer.{limit}"

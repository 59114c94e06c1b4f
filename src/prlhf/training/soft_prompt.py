"""User-model pretraining by P-DPO on the user model alone, the language model frozen."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prlhf.models.personalized import PersonalizedLM
from prlhf.progress import Progress
from prlhf.training.losses import Objective, pair_losses
from prlhf.training.optim import build_optimizer, clip_gradients
from prlhf.training.pairs import Pair, PairCollator
from prlhf.training.trainer import conditions


def train_soft_prompts(
    lm: PersonalizedLM,
    pairs: Sequence[Pair],
    *,
    alpha: float,
    beta: float,
    steps: int,
    lr: float,
    batch_size: int,
    seed: int,
    label: str,
) -> list[float]:
    """Train `lm.user_model` in place.

    Args:
        lm: the frozen base model behind the user model to train.
        pairs: encoded pairs, visited in random order, again from the start if there are few.
        alpha, beta: as in P-DPO.
        steps, lr, batch_size: of the optimiser.
        seed: seed of the order.
        label: shown with the progress.

    Returns:
        The mean loss of every step.
    """
    lm.lm.requires_grad_(False)
    users = lm.user_model.train().requires_grad_(True)
    optimizer = build_optimizer(
        lora=[],
        user_dense=users.dense_parameters(),
        user_tables=users.sparse_parameters(),
        lora_lr=lr,
        user_lr=lr,
        weight_decay=0.0,
    )
    collate = PairCollator(lm.pack, *conditions(lm, alpha))
    objective = Objective(alpha=alpha, beta=beta)
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    losses = []
    with Progress(total=steps, label=label, unit="steps") as progress:
        for _ in range(steps):
            while len(order) < batch_size:
                order += torch.randperm(len(pairs), generator=generator).tolist()
            chosen, order = order[:batch_size], order[batch_size:]
            batch = collate([pairs[i] for i in chosen])["batch"].to(lm.device)
            loss = pair_losses(lm, batch, objective).loss.mean()
            optimizer.zero_grad()
            loss.backward()
            clip_gradients(users.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            progress.advance(1, loss=losses[-1])
    return losses

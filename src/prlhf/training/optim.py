"""One optimiser made of two: AdamW for what all share, row-wise Adam for the tables of users.

With a dense optimiser every user's row would drift with its momentum at every step, and cost time,
whether or not the user is in the batch. `SparseAdam` reads and writes the rows of the batch only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class JointOptimizer(torch.optim.Optimizer):
    """Several optimisers behind the interface of one; their parameter groups stay theirs."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        super().__init__([g for optimizer in optimizers for g in optimizer.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step every optimiser.

        Raises:
            ValueError: a closure is given; none of the parts could share it.
        """
        if closure is not None:
            raise ValueError("JointOptimizer takes no closure")
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        # Loading replaces the group objects; a scheduler must go on changing the ones in use.
        self.param_groups = [g for o in self.optimizers for g in o.param_groups]


def build_optimizer(
    *,
    lora: list[nn.Parameter],
    user_dense: list[nn.Parameter],
    user_tables: list[nn.Parameter],
    lora_lr: float,
    user_lr: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """The optimiser of P-DPO: LoRA and user model with a learning rate each.

    Weight decay applies to the LoRA weights only; the user model has its own penalties.
    """
    groups = [
        {"params": lora, "lr": lora_lr, "weight_decay": weight_decay},
        {"params": user_dense, "lr": user_lr, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if dense := [group for group in groups if group["params"]]:
        optimizers.append(torch.optim.AdamW(dense, betas=(0.9, 0.999)))
    if user_tables:
        optimizers.append(torch.optim.SparseAdam(user_tables, lr=user_lr, betas=(0.9, 0.999)))
    return JointOptimizer(optimizers)


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients, sparse ones included, to a joint norm of at most `max_norm`.

    Returns:
        The norm before clipping, a scalar tensor; reading it is left to the caller.
    """
    with_grad = [p for p in parameters if p.grad is not None]
    norms = []
    for parameter in with_grad:
        grad = parameter.grad
        assert grad is not None
        if grad.is_sparse:
            # A user met twice in a batch has two entries, whose sum counts.
            parameter.grad = grad = grad.coalesce()
            norms.append(torch.linalg.vector_norm(grad.values()))
        else:
            norms.append(torch.linalg.vector_norm(grad))
    if not norms:
        return torch.zeros(())
    total = torch.linalg.vector_norm(torch.stack(norms))
    scale = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for parameter in with_grad:
        assert parameter.grad is not None
        parameter.grad.mul_(scale)
    return total

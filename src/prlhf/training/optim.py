"""One optimiser made of two: AdamW for what users share, row-wise Adam for the per-user tables.

With a dense optimiser every user's row would move with its momentum at every step, and cost time,
whether or not the user is in the batch. `SparseAdam` reads and writes the rows of the batch only.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class JointOptimizer(torch.optim.Optimizer):
    """Several optimisers behind the interface of one, with the parameter groups of all."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        super().__init__([g for optimizer in optimizers for g in optimizer.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step every optimiser.

        Raises:
            ValueError: a closure is given, which each of the optimisers would call again.
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
    """The optimiser of P-DPO, with a learning rate for the adapter and one for the user model.

    Args:
        lora: the adapter, and a head if there is one: all that weight decay applies to, because
            user models have penalties of their own.
        user_dense: parameters that users share.
        user_tables: per-user tables with sparse gradients.
        lora_lr, user_lr, weight_decay: see `optimizer.*` in `params.yaml`.
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
        The norm before clipping, a scalar tensor on the device.
    """
    with_grad = [p for p in parameters if p.grad is not None]
    norms = []
    for parameter in with_grad:
        grad = parameter.grad
        assert grad is not None
        if grad.is_sparse:
            # A user who is in a batch twice has two entries, whose sum counts.
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

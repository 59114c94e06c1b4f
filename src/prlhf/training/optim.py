"""One optimiser made of two: AdamW for what users share, `RowAdam` for the per-user tables.

With a dense optimiser every user's row would move with its momentum at every step, and cost time,
whether or not the user is in the batch.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn

from prlhf.models.user_model import UserModel

BETAS: Final = (0.9, 0.999)
"""Adam's decay rates of the first and the second moment."""


class RowAdam(torch.optim.Optimizer):
    """Adam on the rows of tables with sparse gradients, each row by a clock of its own.

    A row goes the way that dense Adam takes in only those steps in which the row has a gradient.
    `torch.optim.SparseAdam` corrects the bias of all rows by the steps of the table: the first step
    of a row that first comes up in step t is then `sqrt(1 - 0.999^t) / (1 - 0.9^t) / sqrt(0.1)`
    times what it should be, and its next ones are too large as well.

    A step reads and writes the rows of the batch only. A row whose gradient is zero (that of an
    example without weight) has not come up.

    Args:
        tables: parameters [N, D], whose gradients are sparse in their first dimension.
        lr: learning rate.
        betas: decay rates of the moments.
        eps: added to the denominator.
    """

    def __init__(
        self,
        tables: Iterable[nn.Parameter] | list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = BETAS,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(tables, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move the rows that have a gradient."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._step(table, **{name: group[name] for name in ("lr", "betas", "eps")})

    def _step(
        self, table: nn.Parameter, *, lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        assert table.grad is not None
        gradient = table.grad.coalesce()
        rows, values = gradient.indices()[0], gradient.values()
        state = self.state[table]
        if not state:
            # Not integers: loading a state casts it to the parameter's type.
            state["steps"] = table.new_zeros(len(table), 1)
            state["exp_avg"] = torch.zeros_like(table)
            state["exp_avg_sq"] = torch.zeros_like(table)
        seen = (values != 0).any(dim=1, keepdim=True)
        steps = state["steps"][rows] + seen
        first, second = state["exp_avg"][rows], state["exp_avg_sq"][rows]
        first = torch.where(seen, first.lerp(values, 1 - betas[0]), first)
        second = torch.where(seen, second.lerp(values.square(), 1 - betas[1]), second)
        for name, values in (("steps", steps), ("exp_avg", first), ("exp_avg_sq", second)):
            state[name][rows] = values
        # Exact at the first step too, where 1 - 0.999 in float32 would be 5e-5 off.
        correction = [-torch.expm1(steps * math.log(beta)) for beta in betas]
        moved = first / correction[0] / ((second / correction[1]).sqrt() + eps)
        table.index_add_(0, rows, torch.where(seen, moved, 0.0), alpha=-lr)


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
    others: Iterable[nn.Parameter],
    users: UserModel,
    *,
    lora_lr: float,
    user_lr: float,
    weights_lr: float,
    weight_decay: float,
) -> JointOptimizer:
    """The optimiser of P-DPO, of all parameters that are trainable.

    Args:
        others: the adapter, and a head if there is one: all that weight decay applies to, because
            user models have penalties of their own.
        users: the user model.
        lora_lr: learning rate of `others`.
        user_lr: of the user model's embeddings, in their own unit.
        weights_lr: of the logits of its mixtures.
        weight_decay: see `optimizer.weight_decay` in `params.yaml`.
    """
    logits = set(map(id, users.logits()))

    def divided(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
        trained = [p for p in parameters if p.requires_grad]
        groups = [
            {"params": [p for p in trained if id(p) not in logits], "lr": user_lr},
            {"params": [p for p in trained if id(p) in logits], "lr": weights_lr},
        ]
        return [group for group in groups if group["params"]]

    dense = [{**group, "weight_decay": 0.0} for group in divided(users.dense_parameters())]
    if adapter := [p for p in others if p.requires_grad]:
        dense.insert(0, {"params": adapter, "lr": lora_lr, "weight_decay": weight_decay})
    optimizers: list[torch.optim.Optimizer] = []
    if dense:
        optimizers.append(torch.optim.AdamW(dense, betas=BETAS))
    if tables := divided(users.sparse_parameters()):
        optimizers.append(RowAdam(tables, lr=user_lr))
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

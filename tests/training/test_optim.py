"""The joint optimiser, its learning rates and schedules, and gradient clipping."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from prlhf.training.optim import JointOptimizer, build_optimizer, clip_gradients


class Parts(nn.Module):
    """An adapter, a shared part and a table, all of which the loss depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.lora = nn.Parameter(torch.ones(3))
        self.shared = nn.Parameter(torch.ones(2))
        self.table = nn.Embedding(5, 2, sparse=True)
        nn.init.ones_(self.table.weight)

    def loss(self, users: list[int]) -> Tensor:
        rows = self.table(torch.tensor(users))
        return self.lora.pow(2).sum() + self.shared.pow(2).sum() + rows.pow(2).sum()


def optimizer_of(parts: Parts, **options: float) -> torch.optim.Optimizer:
    rates = {"lora_lr": 0.01, "user_lr": 0.1, "weight_decay": 0.0, **options}
    return build_optimizer(
        lora=[parts.lora],
        user_dense=[parts.shared],
        user_tables=[parts.table.weight],
        **rates,
    )


def step(parts: Parts, optimizer: torch.optim.Optimizer, users: list[int]) -> None:
    optimizer.zero_grad()
    parts.loss(users).backward()
    optimizer.step()


def test_every_part_learns_at_its_own_rate() -> None:
    parts = Parts()
    step(parts, optimizer_of(parts), [2])
    # Adam's first step is its learning rate.
    torch.testing.assert_close(parts.lora.data, torch.full((3,), 0.99), rtol=0, atol=1e-5)
    torch.testing.assert_close(parts.shared.data, torch.full((2,), 0.9), rtol=0, atol=1e-5)
    torch.testing.assert_close(parts.table.weight.data[2], torch.full((2,), 0.9), rtol=0, atol=1e-5)
    assert (parts.table.weight.data[[0, 1, 3, 4]] == 1).all()


def test_it_is_adamw_on_dense_parts_and_sparse_adam_on_tables() -> None:
    parts, twin = Parts(), Parts()
    ours = optimizer_of(parts, weight_decay=0.1)
    dense = torch.optim.AdamW(
        [
            {"params": [twin.lora], "lr": 0.01, "weight_decay": 0.1},
            {"params": [twin.shared], "lr": 0.1, "weight_decay": 0.0},
        ]
    )
    sparse = torch.optim.SparseAdam([twin.table.weight], lr=0.1)
    for users in ([1, 2], [2, 2, 3], [4], [1]):
        step(parts, ours, users)
        dense.zero_grad()
        sparse.zero_grad()
        twin.loss(users).backward()
        dense.step()
        sparse.step()
    for one, other in zip(parts.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_user_who_stays_away_stays_the_same() -> None:
    parts = Parts()
    optimizer = optimizer_of(parts)
    step(parts, optimizer, [1])
    before = parts.table.weight.detach().clone()
    for _ in range(3):
        step(parts, optimizer, [2])
    assert torch.equal(parts.table.weight[1], before[1])
    assert not torch.equal(parts.table.weight[2], before[2])


def test_a_schedule_changes_all_rates() -> None:
    parts = Parts()
    optimizer = optimizer_of(parts)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.5**n)
    for n in range(3):
        assert [g["lr"] for g in optimizer.param_groups] == [
            pytest.approx(rate * 0.5**n) for rate in (0.01, 0.1, 0.1)
        ]
        before = {name: p.detach().clone() for name, p in parts.named_parameters()}
        step(parts, optimizer, [2])
        schedule.step()
        # The parts really step with what the groups say: all gradients keep their size and sign.
        for name, rate in (("lora", 0.01), ("shared", 0.1)):
            moved = (before[name] - getattr(parts, name).detach()).abs().max().item()
            assert moved == pytest.approx(rate * 0.5**n, rel=0.1), name
        moved = (before["table.weight"] - parts.table.weight.detach())[2].abs().max().item()
        assert moved == pytest.approx(0.1 * 0.5**n, rel=0.1)


def test_a_saved_optimiser_goes_on_as_if_nothing_had_happened() -> None:
    parts = Parts()
    optimizer = optimizer_of(parts, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.7**n)
    for users in ([1, 2], [3]):
        step(parts, optimizer, users)
        schedule.step()
    state = copy.deepcopy((parts.state_dict(), optimizer.state_dict(), schedule.state_dict()))

    twin = Parts()
    twin_optimizer = optimizer_of(twin, weight_decay=0.1)
    twin_schedule = torch.optim.lr_scheduler.LambdaLR(twin_optimizer, lambda n: 0.7**n)
    twin.load_state_dict(state[0])
    twin_optimizer.load_state_dict(state[1])
    twin_schedule.load_state_dict(state[2])
    for users in ([2], [1, 4]):
        step(parts, optimizer, users)
        schedule.step()
        step(twin, twin_optimizer, users)
        twin_schedule.step()
    for one, other in zip(parts.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("missing", ["lora", "user_dense", "user_tables"])
def test_parts_may_be_missing(missing: str) -> None:
    """DPO has no user model, and soft-prompt pretraining no adapter."""
    parts = Parts()
    given = {
        "lora": [parts.lora],
        "user_dense": [parts.shared],
        "user_tables": [parts.table.weight],
    }
    given[missing] = []
    optimizer = build_optimizer(**given, lora_lr=0.01, user_lr=0.1, weight_decay=0.0)
    assert isinstance(optimizer, JointOptimizer)
    before = copy.deepcopy(parts.state_dict())
    step(parts, optimizer, [2])
    names = {"lora": "lora", "user_dense": "shared", "user_tables": "table.weight"}
    for part, name in names.items():
        assert torch.equal(parts.state_dict()[name], before[name]) == (part == missing)


def test_closures_are_refused() -> None:
    with pytest.raises(ValueError, match="closure"):
        optimizer_of(Parts()).step(lambda: 0.0)


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_is_that_of_the_dense_gradients(max_norm: float) -> None:
    parts, twin = Parts(), Parts()
    twin.table.sparse = False
    users = [1, 2, 2, 4]  # user 2 twice: the norm is of the sum
    parts.loss(users).backward()
    twin.loss(users).backward()
    norm = clip_gradients(parts.parameters(), max_norm)
    expected = torch.nn.utils.clip_grad_norm_(twin.parameters(), max_norm)
    torch.testing.assert_close(norm, expected)
    for one, other in zip(parts.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad.to_dense(), other.grad)
    assert parts.table.weight.grad.is_sparse


def test_clipping_by_hand() -> None:
    parts = Parts()
    parts.loss([1, 1]).backward()
    # gradients: lora 2, 2, 2; shared 2, 2; row 1: 4, 4; norm^2 = 12 + 8 + 32 = 52
    norm = clip_gradients(parts.parameters(), 52**0.5 / 2)
    assert norm.item() == pytest.approx(52**0.5)
    assert parts.lora.grad.tolist() == pytest.approx([1, 1, 1])
    assert parts.table.weight.grad.to_dense()[1].tolist() == pytest.approx([2, 2])


def test_clipping_nothing() -> None:
    assert clip_gradients(Parts().parameters(), 1.0).item() == 0

"""The joint optimiser, its learning rates and schedules, and gradient clipping."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from prlhf.models.user_model import UserModel
from prlhf.training.optim import JointOptimizer, RowAdam, build_optimizer, clip_gradients


class Users(UserModel):
    """Embeddings that all share, a table of embeddings, and a table of logits."""

    kind = "test"

    def __init__(self) -> None:
        super().__init__(["ann", "bob", "cyd", "dan"], 1, 2)
        self.shared = nn.Parameter(torch.ones(2))
        self.table = nn.Embedding(5, 2, sparse=True)
        self.mixtures = nn.Embedding(5, 3, sparse=True)
        nn.init.ones_(self.table.weight)
        nn.init.ones_(self.mixtures.weight)

    @classmethod
    def start(cls, known, base, groups) -> Users:
        return cls()

    def logits(self) -> list[nn.Parameter]:
        return [self.mixtures.weight]


class Parts(nn.Module):
    """An adapter and a user model, on all of which the loss depends."""

    def __init__(self) -> None:
        super().__init__()
        self.lora = nn.Parameter(torch.ones(3))
        self.users = Users()

    def loss(self, users: list[int]) -> Tensor:
        batch = torch.tensor(users)
        rows = self.users.table(batch).pow(2).sum() + self.users.mixtures(batch).pow(2).sum()
        return self.lora.pow(2).sum() + self.users.shared.pow(2).sum() + rows


RATES = {"lora_lr": 0.01, "user_lr": 0.1, "weights_lr": 0.05, "weight_decay": 0.0}


def optimizer_of(parts: Parts, **options: float) -> JointOptimizer:
    return build_optimizer([parts.lora], parts.users, **{**RATES, **options})


def step(parts: Parts, optimizer: torch.optim.Optimizer, users: list[int]) -> None:
    optimizer.zero_grad()
    parts.loss(users).backward()
    optimizer.step()


def test_every_part_learns_at_its_own_rate() -> None:
    parts = Parts()
    step(parts, optimizer_of(parts), [2])
    # Adam's first step is its learning rate.
    users = parts.users
    for weight, rate in (
        (parts.lora, 0.01),
        (users.shared, 0.1),
        (users.table.weight[2], 0.1),
        (users.mixtures.weight[2], 0.05),
    ):
        torch.testing.assert_close(weight, torch.full_like(weight, 1 - rate), rtol=0, atol=1e-6)
    assert (users.table.weight.data[[0, 1, 3, 4]] == 1).all()
    assert (users.mixtures.weight.data[[0, 1, 3, 4]] == 1).all()


def test_what_is_frozen_is_left_out() -> None:
    parts = Parts()
    parts.users.table.requires_grad_(False)
    step(parts, optimizer_of(parts), [2])
    assert (parts.users.table.weight == 1).all()
    assert not (parts.users.mixtures.weight == 1).all()


def test_weight_decay_is_on_the_adapter_alone() -> None:
    parts = Parts()
    decays = {
        id(p): g["weight_decay"]
        for g in optimizer_of(parts, weight_decay=0.1).param_groups
        if "weight_decay" in g
        for p in g["params"]
    }
    assert decays == {id(parts.lora): 0.1, id(parts.users.shared): 0.0}


# -- rows ----------------------------------------------------------------------------------------

ROWS, WIDTH = 6, 3


def visits(seed: int = 0, steps: int = 60) -> list[dict[int, Tensor]]:
    """The gradients of some rows in each step, float64; the higher a row, the later it comes up."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for step in range(steps):
        rows = [row for row in range(ROWS) if step >= 11 * row and (step + row) % (row + 1) == 0]
        found.append(
            {row: torch.randn(WIDTH, generator=generator, dtype=torch.float64) for row in rows}
        )
    return found


def take(
    table: nn.Parameter, optimizer: torch.optim.Optimizer, gradients: dict[int, Tensor]
) -> None:
    rows = sorted(gradients)
    values = torch.stack([gradients[row] for row in rows]).to(table.dtype)
    table.grad = torch.sparse_coo_tensor(
        torch.tensor([rows]), values, table.shape, check_invariants=True
    )
    optimizer.step()


def dense_adam(start: Tensor, gradients: Sequence[Tensor], lr: float) -> Tensor:
    """Textbook Adam (arXiv:1412.6980, algorithm 1), float64."""
    weight, first, second = start.double(), 0.0, 0.0
    for step, gradient in enumerate(gradients, 1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        weight = weight - lr * (first / (1 - 0.9**step)) / (
            (second / (1 - 0.999**step)) ** 0.5 + 1e-8
        )
    return weight


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_row_goes_as_dense_adam_would_in_its_own_steps_alone(
    dtype: torch.dtype, within: float
) -> None:
    start = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    table = nn.Parameter(start.clone())
    optimizer = RowAdam([table], lr=0.05)
    for gradients in visits():
        take(table, optimizer, gradients)
    counts = []
    for row in range(ROWS):
        own = [gradients[row] for gradients in visits() if row in gradients]
        counts.append(len(own))
        expected = dense_adam(start[row], own, 0.05)
        torch.testing.assert_close(table[row].double(), expected, rtol=within, atol=within)
    assert optimizer.state[table]["steps"].flatten().tolist() == counts
    assert counts[0] == 60
    assert 0 < counts[-1] < 5


def test_a_row_that_comes_up_late_moves_by_the_learning_rate_at_first() -> None:
    """By the table's steps it would move 0.57 times that far here, 3.2 times after thousands."""
    gradient = torch.ones(WIDTH, dtype=torch.float64)
    moved = {}
    for optimizer_class in (RowAdam, torch.optim.SparseAdam):
        table = nn.Parameter(torch.zeros(ROWS, WIDTH, dtype=torch.float64))
        optimizer = optimizer_class([table], lr=0.1)
        for _ in range(30):
            take(table, optimizer, {0: gradient})
        take(table, optimizer, {3: gradient})
        moved[optimizer_class] = -float(table[3, 0].detach())
    assert moved[RowAdam] == pytest.approx(0.1)
    assert moved[torch.optim.SparseAdam] == pytest.approx(0.057, abs=0.002)


def test_a_gradient_of_zero_is_no_visit() -> None:
    """Of an example without weight, with which an epoch is filled up."""
    table = nn.Parameter(torch.zeros(ROWS, WIDTH))
    optimizer = RowAdam([table], lr=0.1)
    take(table, optimizer, {2: torch.ones(WIDTH)})
    before = copy.deepcopy((table.data, optimizer.state_dict()["state"]))
    take(table, optimizer, {1: torch.zeros(WIDTH), 2: torch.zeros(WIDTH)})
    assert torch.equal(table, before[0])
    for name, value in before[1][0].items():
        assert torch.equal(optimizer.state[table][name], value), name


def test_the_state_is_both_moments_and_a_count_a_row() -> None:
    table = nn.Parameter(torch.zeros(ROWS, WIDTH))
    optimizer = RowAdam([table], lr=0.1)
    take(table, optimizer, {2: torch.ones(WIDTH)})
    sizes = {name: value.numel() for name, value in optimizer.state[table].items()}
    assert sizes == {"steps": ROWS, "exp_avg": ROWS * WIDTH, "exp_avg_sq": ROWS * WIDTH}


def test_a_user_who_stays_away_stays_the_same() -> None:
    parts = Parts()
    optimizer = optimizer_of(parts)
    step(parts, optimizer, [1])
    before = parts.users.table.weight.detach().clone()
    for _ in range(3):
        step(parts, optimizer, [2])
    assert torch.equal(parts.users.table.weight[1], before[1])
    assert not torch.equal(parts.users.table.weight[2], before[2])


def test_a_schedule_changes_all_rates() -> None:
    parts = Parts()
    optimizer = optimizer_of(parts)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.5**n)
    rates = {"lora": 0.01, "users.shared": 0.1, "users.table.weight": 0.1}
    rates["users.mixtures.weight"] = 0.05
    for n in range(3):
        assert [g["lr"] for g in optimizer.param_groups] == [
            pytest.approx(rate * 0.5**n) for rate in rates.values()
        ]
        before = {name: p.detach().clone() for name, p in parts.named_parameters()}
        step(parts, optimizer, [2])
        schedule.step()
        # The parts really step with what the groups say: all gradients keep their size and sign.
        for name, parameter in parts.named_parameters():
            moved = (before[name] - parameter.detach()).abs().max().item()
            assert moved == pytest.approx(rates[name] * 0.5**n, rel=0.1), name


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


def test_there_may_be_no_adapter() -> None:
    """As in soft-prompt pretraining."""
    parts = Parts()
    step(parts, build_optimizer([], parts.users, **RATES), [2])
    assert (parts.lora == 1).all()
    assert not (parts.users.shared == 1).any()


def test_closures_are_refused() -> None:
    with pytest.raises(ValueError, match="closure"):
        optimizer_of(Parts()).step(lambda: 0.0)


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_is_that_of_the_dense_gradients(max_norm: float) -> None:
    parts, twin = Parts(), Parts()
    twin.users.table.sparse = twin.users.mixtures.sparse = False
    users = [1, 2, 2, 4]  # user 2 twice: the norm is of the sum
    parts.loss(users).backward()
    twin.loss(users).backward()
    norm = clip_gradients(parts.parameters(), max_norm)
    expected = torch.nn.utils.clip_grad_norm_(twin.parameters(), max_norm)
    torch.testing.assert_close(norm, expected)
    for one, other in zip(parts.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad.to_dense(), other.grad)
    assert parts.users.table.weight.grad.is_sparse


def test_clipping_by_hand() -> None:
    parts = Parts()
    parts.loss([1, 1]).backward()
    # lora 2, 2, 2; shared 2, 2; row 1: 4, 4 and 4, 4, 4; norm^2 = 12 + 8 + 32 + 48 = 100
    norm = clip_gradients(parts.parameters(), 5.0)
    assert norm.item() == pytest.approx(10)
    assert parts.lora.grad.tolist() == pytest.approx([1, 1, 1])
    assert parts.users.table.weight.grad.to_dense()[1].tolist() == pytest.approx([2, 2])


def test_clipping_nothing() -> None:
    assert clip_gradients(Parts().parameters(), 1.0).item() == 0

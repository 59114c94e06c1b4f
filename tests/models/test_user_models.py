"""User models against their definitions, and what an optimiser step may touch."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import naive
from personal import USERS, random_user_model, with_prior
from prlhf.data import GENERIC
from prlhf.infra.errors import UserError
from prlhf.models.start import Prior
from prlhf.models.user_model import (
    KINDS,
    ClusterUserModel,
    IndividualUserModel,
    UniformUserModel,
    UserModel,
    build,
    kind_of,
)
from prlhf.params import MethodParams
from prlhf.training.optim import build_optimizer

DIM = 5
indices = st.lists(st.integers(0, len(USERS)), min_size=1, max_size=6)
PERSONAL = ["individual", "cluster"]


def step(model: UserModel, users: list[int], optimizer: torch.optim.Optimizer) -> None:
    """One optimiser step on a loss that depends on every embedding of the batch."""
    optimizer.zero_grad()
    batch = torch.tensor(users)
    (model(batch).pow(2).sum() + model.penalty(batch).sum()).backward()
    optimizer.step()


def optimizer_of(model: UserModel, lr: float = 0.1) -> torch.optim.Optimizer:
    return build_optimizer([], model, lora_lr=0.0, user_lr=lr, weights_lr=lr, weight_decay=0.0)


@pytest.mark.parametrize("kind", PERSONAL)
@given(users=indices)
def test_forward_is_the_definition(kind: str, users: list[int]) -> None:
    model = naive.double(random_user_model(kind, DIM))
    embedding = naive.embedding_of(model)
    got = model(torch.tensor(users))
    assert got.shape == (len(users), model.tokens, DIM)
    torch.testing.assert_close(got, torch.stack([embedding(u) for u in users]))


def test_uniform_users_have_no_tokens() -> None:
    model = UniformUserModel(USERS, 4, DIM)
    assert model(torch.tensor([0, 2])).shape == (2, 0, DIM)
    assert model.tokens == 0
    assert list(model.parameters()) == []


def test_a_new_individual_model_knows_no_differences() -> None:
    model = IndividualUserModel(USERS, 2, DIM, clusters=0)
    with torch.no_grad():
        model.shared.normal_()
    got = model(torch.tensor([0, 1, 2, 3]))
    assert (model.offsets.weight == 0).all()
    assert torch.equal(got, model.shared.expand(4, -1, -1))


def test_the_generic_user_of_an_individual_model_has_no_offset_whatever_the_table_holds() -> None:
    model = random_user_model("individual", DIM)
    with torch.no_grad():
        model.offsets.weight[GENERIC] = 9.0
        model.weights[GENERIC] = torch.tensor([3.0, 0.0, -1.0])
    assert torch.equal(model(torch.tensor([GENERIC]))[0], model.shared)


def test_the_generic_user_of_a_cluster_model_has_weights_of_its_own() -> None:
    model = random_user_model("cluster", DIM)
    with torch.no_grad():
        model.weights.weight[GENERIC] = torch.tensor([9.0, 0.0, 0.0])
        model.generic_weights.copy_(torch.tensor([0.0, 50.0, 0.0]))
    torch.testing.assert_close(model(torch.tensor([GENERIC]))[0], model.centres[1])


def test_one_cluster_is_the_same_for_all() -> None:
    model = ClusterUserModel(USERS, 2, DIM, clusters=1)
    with torch.no_grad():
        model.centres.normal_()
        model.weights.weight.normal_()
    assert torch.equal(model(torch.tensor([0, 1, 3])), model.centres.expand(3, -1, -1))


@pytest.mark.parametrize("kind", PERSONAL)
@given(users=indices)
def test_gradient_reaches_the_batch_the_generic_user_and_shared_parts_only(
    kind: str, users: list[int]
) -> None:
    model = random_user_model(kind, DIM)
    (model(torch.tensor(users)) ** 2).sum().backward()
    (table,) = model.sparse_parameters()
    assert table.grad is not None
    assert table.grad.is_sparse
    slopes = table.grad.to_dense()
    for user in range(len(USERS) + 1):
        touched = bool(slopes[user].abs().sum() > 0)
        assert touched == (user in users and user != GENERIC)
    if kind == "individual":
        assert model.shared.grad.abs().sum() > 0
    else:
        assert model.centres.grad.abs().sum() > 0
        assert bool(model.generic_weights.grad.abs().sum() > 0) == (GENERIC in users)


@pytest.mark.parametrize("kind", PERSONAL)
@given(users=indices)
def test_gradient_is_that_of_the_definition(kind: str, users: list[int]) -> None:
    model = naive.double(random_user_model(kind, DIM))
    twin = naive.double(model)
    weights = torch.randn(
        len(users), model.tokens, DIM, dtype=torch.float64, generator=torch.manual_seed(0)
    )
    (model(torch.tensor(users)) * weights).sum().backward()
    embedding = naive.embedding_of(twin)
    sum((embedding(u) * weights[i]).sum() for i, u in enumerate(users)).backward()
    for (name, got), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        if expected.grad is None:
            assert got.grad is None or not got.grad.to_dense().any(), name
        else:
            torch.testing.assert_close(got.grad.to_dense(), expected.grad)


@pytest.mark.parametrize("kind", PERSONAL)
def test_absent_users_do_not_drift_with_momentum(kind: str) -> None:
    model = random_user_model(kind, DIM)
    (table,) = model.sparse_parameters()
    optimizer = optimizer_of(model)
    before = table.detach().clone()
    step(model, [1, GENERIC], optimizer)
    assert not torch.equal(table[1], before[1])
    after_one = table.detach().clone()
    shared = [p.detach().clone() for p in model.dense_parameters()]
    for _ in range(4):
        step(model, [2, 2, GENERIC], optimizer)
    assert torch.equal(table[1], after_one[1])
    assert torch.equal(table[3], before[3])
    assert not torch.equal(table[2], before[2])
    assert torch.equal(table[GENERIC], torch.zeros_like(table[GENERIC]))
    for now, then in zip(model.dense_parameters(), shared, strict=True):
        assert not torch.equal(now, then)


def test_row_wise_adam_is_adam_on_the_rows_it_meets() -> None:
    """First step of Adam: lr * g / (|g| + eps), whatever the size of the gradient."""
    model = random_user_model("individual", DIM)
    (table,) = model.sparse_parameters()
    before = table.detach().clone()
    step(model, [2], optimizer_of(model, lr=0.1))
    moved = (table.detach() - before)[2].abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1), rtol=1e-3, atol=0)


# -- where users are put, and what draws them there --------------------------------------------


@pytest.mark.parametrize("kind", PERSONAL)
def test_a_placed_user_is_where_others_of_the_mixture_are_on_average(kind: str) -> None:
    model = random_user_model(kind, DIM)
    before = model(torch.arange(4)).detach()
    model.place(torch.tensor([2]), torch.tensor([[20.0, -20.0, -20.0]]))
    after = model(torch.arange(4)).detach()
    others = torch.tensor([0, 1, 3])
    assert torch.equal(after[others], before[others])
    if kind == "cluster":
        torch.testing.assert_close(after[2], model.centres[0].detach())
    else:
        ahead = torch.tensor([1.0, 0.0, 0.0]) - model.weights[GENERIC].softmax(0)
        expected = model.shared + torch.einsum("k,ktd->td", ahead, model.directions)
        torch.testing.assert_close(after[2], expected.detach())


def test_a_user_with_the_generic_mixture_is_the_generic_user_bit_for_bit() -> None:
    one, other = random_user_model("individual", DIM), random_user_model("cluster", DIM)
    for model, generic in ((one, one.weights[GENERIC]), (other, other.generic_weights.detach())):
        model.place(torch.tensor([3]), generic[None].clone())
        users = model(torch.tensor([3, GENERIC]))
        assert torch.equal(users[0], users[1])


@pytest.mark.parametrize("kind", PERSONAL)
@given(users=indices)
def test_the_penalty_is_that_of_the_definition(kind: str, users: list[int]) -> None:
    model = naive.double(with_prior(random_user_model(kind, DIM)))
    got = model.penalty(torch.tensor(users))
    expected = [torch.as_tensor(naive.prior(model, user)).item() for user in users]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["uniform", *PERSONAL])
def test_without_a_prior_there_is_no_penalty(kind: str) -> None:
    model = random_user_model(kind, DIM)
    assert model.penalty(torch.tensor([0, 1, 2])).tolist() == [0, 0, 0]
    with_prior(model)
    loaded = build(model.users, model.config())
    loaded.load_state_dict(model.state_dict())
    assert loaded.penalty(torch.tensor([0, 1, 2])).tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", PERSONAL)
def test_a_prior_counts_once_for_each_user_however_many_pairs_they_have(kind: str) -> None:
    """And users without pairs of their own, who are in no batch but as the generic user, never."""
    model = random_user_model(kind, DIM)
    with torch.no_grad():
        rows = model.weights.weight if kind == "cluster" else model.offsets.weight
        rows[1:] = rows[1]
    prior = Prior(torch.tensor([0.0, 4.0, 100.0, 0.0]), 1.5, 0.5, 0.3)
    model.set_prior(prior)
    if kind == "cluster":
        model.starts.zero_()
    one, other, none = model.penalty(torch.tensor([1, 2, 3])).tolist()
    assert one > 0
    assert 4 * one == pytest.approx(100 * other)
    assert none == 0


def test_without_a_spread_only_the_generic_user_is_drawn() -> None:
    cluster, individual = (random_user_model(kind, DIM) for kind in ("cluster", "individual"))
    for model in (cluster, individual):
        model.set_prior(Prior(torch.tensor([0.0, 2.0, 2.0, 2.0]), None, None, 0.5))
    with torch.no_grad():
        cluster.weights.weight += 1
    cluster.penalty(torch.tensor([1, 2])).sum().backward()
    assert cluster.weights.weight.grad is None
    gap = 2 * cluster.generic_weights - cluster.weights.weight[1:3].sum(0)
    torch.testing.assert_close(cluster.generic_weights.grad, (0.5 * gap).detach())
    assert individual.penalty(torch.tensor([1, 2])).tolist() == [0, 0]


def test_the_generic_user_is_drawn_to_the_mean_user_not_to_the_mean_pair() -> None:
    model = ClusterUserModel(USERS, 2, DIM, clusters=2)
    with torch.no_grad():
        model.weights.weight[1:] = torch.tensor([[1.0, 0.0], [2.0, 0.0], [6.0, -3.0]])
    pairs = torch.tensor([0, 1, 2, 5])
    model.set_prior(Prior(pairs.float(), 1.0, None, 1.0))
    optimizer = torch.optim.SGD([model.generic_weights], lr=0.5)
    users = torch.arange(4).repeat_interleave(pairs)
    for _ in range(50):
        optimizer.zero_grad()
        model.penalty(users).mean().backward()
        optimizer.step()
    mean = torch.tensor([3.0, -1.0])
    torch.testing.assert_close(model.generic_weights.data, mean, rtol=1e-3, atol=0)


def test_the_mean_over_pairs_is_least_where_each_users_posterior_is_highest() -> None:
    """Newton's method on minus each user's own log-posterior finds what SGD on batches would."""
    spread, counts = 0.8, [0, 2, 30]
    model = ClusterUserModel(["few", "many"], 1, 1, clusters=2).double()
    users = torch.arange(3).repeat_interleave(torch.tensor(counts))
    with torch.no_grad():
        model.centres.copy_(torch.tensor([[[0.0]], [[1.0]]]))
        model.weights.weight[1:] = torch.tensor([[0.3, -0.3], [0.3, -0.3]])
    model.set_prior(Prior(torch.tensor(counts).double(), spread, None, 0.0))
    # Everybody wants the second cluster, in all of their pairs.
    optimizer = torch.optim.LBFGS([model.weights.weight], max_iter=200, tolerance_grad=1e-12)
    model.weights.sparse = False

    def mean_loss() -> Tensor:
        optimizer.zero_grad()
        losses = torch.nn.functional.softplus(-4 * model(users).flatten())
        loss = (losses + model.penalty(users)).mean()
        loss.backward()
        return loss

    optimizer.step(mean_loss)
    moved = []
    for user, count in ((1, 2), (2, 30)):
        own = model.weights.weight[user].detach()
        # The logits move against each other; by symmetry one number says by how much.
        x = torch.linspace(0, 4, 40_001, dtype=torch.float64)
        share = torch.sigmoid(-2 * (0.3 - x))
        posterior = count * torch.nn.functional.softplus(-4 * share) + 2 * x**2 / (2 * spread**2)
        best = x[posterior.argmin()]
        torch.testing.assert_close(0.3 - own[0], best, rtol=0, atol=2e-4)
        torch.testing.assert_close(own[1] + 0.3, best, rtol=0, atol=2e-4)
        moved.append(float(best))
    assert 0.1 < moved[0] < 0.6
    assert moved[1] > 2 * moved[0]


def test_users_go_by_the_callers_ids() -> None:
    model = random_user_model("individual", DIM)
    assert [model.index(u) for u in ("ann", " cyd", "zoe", None, "")] == [1, 3, 0, 0, 0]
    assert model.indices(["cyd", None, "ann\u200b"]) == [3, 0, 1]
    with pytest.raises(UserError, match="not among the 3 users that the model knows: 'zoe', ''"):
        model.indices(["ann", "zoe", ""])


def test_a_model_that_answers_all_alike_asks_for_nobodys_name() -> None:
    assert random_user_model("uniform", DIM).indices(["zoe", None]) == [0, 0]
    nobody = build([], random_user_model("individual", DIM).config())
    assert nobody.indices(["ann", None]) == [0, 0]
    with pytest.raises(UserError, match="users: expected text or a whole number, found true"):
        nobody.indices([True])


@pytest.mark.parametrize("kind", ["uniform", *PERSONAL])
def test_the_configuration_builds_the_same_model(kind: str) -> None:
    model = random_user_model(kind, DIM)
    twin = build(model.users, model.config())
    assert twin.config() == model.config()
    assert all((p == 0).all() for p in twin.parameters())
    twin.load_state_dict(model.state_dict())
    users = torch.tensor([0, 1, 2, 3])
    assert torch.equal(twin(users), model(users))


@pytest.mark.parametrize("kind", PERSONAL)
def test_tables_and_shared_parts_make_up_the_whole(kind: str) -> None:
    model = random_user_model(kind, DIM)
    parts = [*model.sparse_parameters(), *model.dense_parameters()]
    assert {id(p) for p in parts} == {id(p) for p in model.parameters()}
    assert len(parts) == len(set(map(id, parts)))


def test_the_kinds_are_those_of_the_parameters() -> None:
    assert set(KINDS) == set(get_args(MethodParams.model_fields["kind"].annotation))
    with pytest.raises(UserError, match="unknown kind of user model 'clusters' .use one of unif"):
        kind_of("clusters")

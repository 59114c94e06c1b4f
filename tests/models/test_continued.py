"""User models that go on with other people: rows by id, newcomers by a regression."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from personal import USERS, random_user_model
from prlhf.models.continued import continued, with_users
from prlhf.models.user_model import ClusterUserModel, Prior, UserModel, build

KINDS = ["individual", "cluster"]


def logits(model: UserModel) -> Tensor:
    if isinstance(model, ClusterUserModel):
        rows = model.weights.weight.detach().clone()
        rows[0] = model.generic_weights.detach()
        return rows
    return model.weights


def start(kind: str, users: list[str], clusters: int = 2) -> UserModel:
    """What a later pretraining found, with clusters of its own."""
    model = build(users, {"kind": kind, "tokens": 2, "dim": 8, "clusters": clusters})
    generator = torch.Generator().manual_seed(7)
    found = torch.randn(len(users) + 1, clusters, generator=generator)
    with torch.no_grad():
        model.place(torch.arange(1, len(users) + 1), found[1:])
        (model.generic_weights if kind == "cluster" else model.weights[0]).copy_(found[0])
    return model


@pytest.mark.parametrize("kind", ["uniform", *KINDS])
def test_rows_follow_their_ids(kind: str) -> None:
    trained = random_user_model(kind, 8)
    model = with_users(trained, ["cyd", "zoe", "ann"])
    everyone = torch.tensor([0, trained.index("cyd"), 0, trained.index("ann")])
    assert torch.equal(model(torch.arange(4)), trained(everyone))
    assert model.config() == trained.config()
    assert with_users(trained, [])(torch.tensor([0])).equal(trained(torch.tensor([0])))
    assert trained.users == USERS


@pytest.mark.parametrize("kind", KINDS)
def test_newcomers_are_placed_by_ridge_regression(kind: str) -> None:
    trained = random_user_model(kind, 8)
    later = start(kind, ["bob", "new", "cyd", "ann", "too"])
    model = continued(later, trained)

    mixtures = logits(later).double().softmax(1).numpy()
    features = mixtures[1:] - mixtures[0]
    wanted = logits(trained).double().numpy()
    known, new = [0, 2, 3], [1, 4]
    # The penalty as further rows of a plain least-squares problem.
    left = np.vstack([features[known], np.eye(2)])
    right = np.vstack([wanted[[2, 3, 1]] - wanted[0], np.zeros((2, 3))])
    slopes = np.linalg.lstsq(left, right, rcond=None)[0]
    expected = wanted[0] + features[new] @ slopes
    found = logits(model)[[2, 5]].double().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - wanted[0]).max() > 0.1
    assert torch.equal(model(torch.tensor([1, 3, 4])), trained(torch.tensor([2, 3, 1])))


@pytest.mark.parametrize("kind", KINDS)
def test_newcomers_of_whom_nothing_is_known_are_generic(kind: str) -> None:
    trained = random_user_model(kind, 8)
    strangers = continued(start(kind, ["new", "too"]), trained)
    assert torch.equal(strangers(torch.arange(3)), trained(torch.tensor([0, 0, 0])))
    blank = build(["ann", "new"], {"kind": kind, "tokens": 2, "dim": 8, "clusters": 2})
    model = continued(blank, trained)
    torch.testing.assert_close(model(torch.arange(3)), trained(torch.tensor([0, 1, 0])))


def test_the_prior_is_about_where_people_are_now() -> None:
    trained = random_user_model("cluster", 8)
    later = start("cluster", ["bob", "new"])
    pairs = torch.tensor([0.0, 2.0, 4.0])
    later.set_prior(Prior(pairs, weights_spread=1.0, offset_spread=None, generic_pull=0.0))
    model = continued(later, trained)
    assert torch.equal(model.penalty(torch.tensor([1, 2])), torch.zeros(2))
    assert torch.equal(model.share, torch.tensor([0.0, 0.5, 0.25]))

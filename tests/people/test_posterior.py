"""The posterior of a person: against numerical integration, one by one, and at its limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

import prlhf.people.posterior as module
from prlhf.people.posterior import Evidence, Posterior, posterior


def evidence(counts, q: int = 3, *, seed: int = 0, scale: float = 1.0) -> Evidence:
    """Pairs of people who have `counts` of them, in mixed order."""
    rng = np.random.default_rng(seed)
    users = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    directions = scale * rng.normal(size=(len(users), q))
    return Evidence(rng.normal(size=len(users)), directions, users, rng.uniform(0.5, 2, len(users)))


def naive(found: Evidence, user: int) -> tuple[np.ndarray, np.ndarray]:
    """Mode and Laplace covariance of one person, by a general optimiser in float64."""
    rows = found.users == user
    offset, along, weight = found.offsets[rows], found.directions[rows], found.weights[rows]

    def loss(s):
        return weight @ np.logaddexp(0, -(offset + along @ s)) + s @ s / 2

    mode = minimize(loss, np.zeros(along.shape[1]), method="BFGS", options={"gtol": 1e-10}).x
    p = 1 / (1 + np.exp(-(offset + along @ mode)))
    hessian = (along * (weight * p * (1 - p))[:, None]).T @ along + np.eye(len(mode))
    return mode, np.linalg.inv(hessian)


@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.3, 2.0, 20.0]),
)
def test_it_is_laplace_about_each_mode(counts, seed, scale):
    pairs = evidence(counts, seed=seed, scale=scale)
    found = posterior(pairs, len(counts))
    for user in range(len(counts)):
        mode, covariance = naive(pairs, user)
        np.testing.assert_allclose(found.means[user], mode, atol=2e-4)
        np.testing.assert_allclose(found.covariances[user], covariance, atol=2e-4)


def test_without_choices_it_is_the_prior():
    found = posterior(evidence([0, 5, 0]), 3)
    assert (found.means[[0, 2]] == 0).all()
    assert (found.covariances[[0, 2]] == np.eye(3)).all()
    assert np.linalg.det(found.covariances[1]) < 1


def test_people_do_not_depend_on_each_other_or_on_chunks(monkeypatch):
    pairs = evidence([7, 0, 30, 2, 11])
    together = posterior(pairs, 5)
    monkeypatch.setattr(module, "CHUNK", 12)
    apart = posterior(pairs, 5)
    np.testing.assert_allclose(apart.means, together.means, atol=1e-8)
    np.testing.assert_allclose(apart.covariances, together.covariances, atol=1e-8)


def test_a_pair_of_weight_two_is_two_pairs():
    pairs = evidence([6])
    twice = pairs[np.repeat(np.arange(6), 2)]
    double = Evidence(pairs.offsets, pairs.directions, pairs.users, 2 * pairs.weights)
    np.testing.assert_allclose(posterior(twice, 1).means, posterior(double, 1).means, atol=1e-8)


def test_predictions_allow_for_what_is_not_known():
    """Log-odds are close to those of the integral over the posterior, taken as normal."""
    people = Posterior(np.array([[0.7, -0.4]]), np.array([[[0.8, 0.2], [0.2, 0.5]]]))
    asked = Evidence(np.array([0.3]), np.array([[1.5, 0.5]]), np.array([0]), np.ones(1))
    draws = np.random.default_rng(0).multivariate_normal(
        people.means[0], people.covariances[0], 200_000
    )
    chance = (1 / (1 + np.exp(-(0.3 + draws @ asked.directions[0])))).mean()
    (found,) = people.log_odds(asked)
    assert found == pytest.approx(np.log(chance / (1 - chance)), abs=0.02)
    certain = Posterior(people.means, 0 * people.covariances)
    assert certain.log_odds(asked)[0] == pytest.approx(0.3 + 0.7 * 1.5 - 0.4 * 0.5)

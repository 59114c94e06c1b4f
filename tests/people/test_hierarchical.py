"""The hierarchical reward: it learns who differs, and leaves alone those who do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from prlhf.data import GENERIC
from prlhf.people import fitting
from prlhf.people.features import Axes, Examples
from prlhf.people.fitting import Design, fit_hierarchy, fit_shared
from prlhf.people.folds import fold_rows
from prlhf.people.gain import is_gain, shuffled_within
from prlhf.people.hierarchical import HierarchicalReward, fit_hierarchical
from tastes import choices

Fitted = tuple[HierarchicalReward, dict[str, Any]]

WIDTH = 12
SIGNS = np.array([-1, 1, 1, -1, 1, 1, 1, -1, 1, 1])
"""Seven against three, the minority first."""


def opposed(signs=SIGNS, strength: float = 3.0) -> np.ndarray:
    return np.outer(signs, strength * np.eye(WIDTH)[0])


def fit(examples: Examples, **changes: Any) -> Fitted:
    options = {"clusters": None, "max_clusters": 4, "seed": 0} | changes
    return fit_hierarchical(examples, int(examples.users.max()), **options)


def accuracy(reward: HierarchicalReward, test: Examples, users=None) -> float:
    """Share of test pairs predicted, as their users or as given."""
    first, second = (test.texts[torch.from_numpy(rows)] for rows in (test.chosen, test.rejected))
    asked = torch.from_numpy(test.users if users is None else users)
    return float((reward.log_odds(first, second, asked) > 0).float().mean())


@pytest.fixture(scope="module")
def found() -> Fitted:
    return fit(choices(opposed(), 60, noise=False))


@pytest.fixture(scope="module")
def reward(found: Fitted) -> HierarchicalReward:
    return found[0]


def test_the_minority_is_found_and_served(found: Fitted):
    reward, report = found
    assert reward.personal
    assert report["clusters"] == 2
    # Numbered by size: the majority is 0.
    assert reward.assignments.tolist() == [0 if sign > 0 else 1 for sign in SIGNS]
    test = choices(opposed(), 40, seed=1, noise=False)
    everybody = np.full(len(test), GENERIC)
    assert accuracy(reward, test) > 0.8 > 0.7 > accuracy(reward, test, everybody)


def test_the_gain_is_measured_with_its_control(found: Fitted):
    gain = found[1]["gain"]
    assert gain["personal"] is True
    assert gain["users"] == 10
    assert 400 < gain["pairs"] < 600  # a tenth of the people is left out in each fold
    for name in ("log_loss", "accuracy"):
        figures, control = gain[name], gain["shuffled"][name]
        sign = 1 if name == "log_loss" else -1
        assert figures["difference"] == pytest.approx(
            sign * (figures["shared"] - figures["personal"])
        )
        assert figures["difference"] > 3 * figures["se"] > 0
        assert abs(control["difference"]) < 0.25 * figures["difference"]


def test_nobody_is_hurt_where_all_share_one_taste():
    """At four pairs a person, each is served as well as by one model for all."""
    gaps, opened = [], 0
    for seed in range(5):
        tastes = np.tile(np.random.default_rng(seed).normal(size=WIDTH), (60, 1))
        train, test = choices(tastes, 4, seed=seed), choices(tastes, 40, seed=100 + seed)
        test = replace(test, texts=train.texts)
        test = answered(test, tastes, seed)
        reward, report = fit(train, seed=seed)
        shared = one_for_all(train, report)
        gaps.append(accuracy(reward, test) - margin_accuracy(test, shared))
        opened += report["gain"]["personal"]
    assert np.mean(gaps) > -0.005
    assert opened <= 2


def answered(pairs: Examples, tastes: np.ndarray, seed: int) -> Examples:
    """The same questions about the same texts, answered anew."""
    difference = (pairs.texts[pairs.chosen] - pairs.texts[pairs.rejected]).double().numpy()
    margin = (difference * tastes[pairs.users - 1]).sum(1)
    better = margin > np.random.default_rng(seed).logistic(size=len(margin))
    return replace(
        pairs,
        chosen=np.where(better, pairs.chosen, pairs.rejected),
        rejected=np.where(better, pairs.rejected, pairs.chosen),
    )


def one_for_all(train: Examples, report: dict[str, Any]) -> np.ndarray:
    design = Design.of(train, Axes.of(train, 1024), int(train.users.max()) + 1)
    return design.axes.vectors @ fit_shared(design, *report["shared"].values())


def margin_accuracy(test: Examples, direction: np.ndarray) -> float:
    texts = test.texts.double().numpy() @ direction
    return float((texts[test.chosen] > texts[test.rejected]).mean())


def test_six_kinds_are_found():
    kinds = np.repeat(np.arange(6), 8)
    tastes = 3 * np.eye(WIDTH)[kinds]
    train = choices(tastes, 40, texts=1000)
    reward, report = fit(train, clusters=6, control=False)
    assert report["gain"]["personal"]
    pairs = set(zip(kinds.tolist(), reward.assignments.tolist(), strict=True))
    assert len(pairs) == 6


def test_a_closed_gate_makes_everybody_the_generic_user():
    tastes = np.tile(opposed()[1], (10, 1))
    reward, report = fit(choices(tastes, 30, seed=3), clusters=3)
    assert report["gain"]["personal"] is reward.personal is False
    assert reward.weights.shape == (11, 3)
    assert not reward.weights.any()
    assert not reward.basis.any()
    features = torch.randn(11, WIDTH, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        reward(features, torch.arange(11)), reward(features, torch.zeros(11, dtype=torch.long))
    )


def test_a_newcomer_is_placed_like_a_trained_user(reward: HierarchicalReward):
    train = choices(opposed(), 60, noise=False)
    own = train[train.users == 1]
    placed = reward.posterior(replace(own, users=np.zeros(len(own), dtype=np.int64)), 2)
    np.testing.assert_allclose(placed.means[0], reward.means[1], atol=1e-3)
    torch.testing.assert_close(reward.place(placed)[0], reward.weights[1], atol=2e-2, rtol=0)
    # One of whom nothing is known is the generic user.
    torch.testing.assert_close(reward.place(placed)[1], reward.weights[GENERIC])
    few = reward.posterior(replace(own[:3], users=np.zeros(3, dtype=np.int64)), 1)
    assert (few.covariances[0].diagonal() >= reward.covariances[1].diagonal().numpy() - 1e-6).all()


def test_what_is_not_known_of_a_user_draws_to_one_half(reward: HierarchicalReward):
    one, other = torch.randn(2, 50, WIDTH, generator=torch.Generator().manual_seed(2))
    users = torch.full((50,), 3)
    certain = replace(reward, covariances=0 * reward.covariances)
    margins = reward(one, users) - reward(other, users)
    torch.testing.assert_close(certain.log_odds(one, other, users), margins)
    odds = reward.log_odds(one, other, users)
    assert (odds.sign() == margins.sign()).all()
    assert (odds.abs() < margins.abs()).all()
    torch.testing.assert_close(reward.log_odds(other, one, users), -odds)


def test_the_weights_say_where_users_are(reward: HierarchicalReward):
    mixed = torch.softmax(reward.weights, 1) @ reward.centres
    features = torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(1))
    for user in range(1, 11):
        own, by_mixture = (features @ reward.basis @ where[user] for where in (reward.means, mixed))
        assert torch.corrcoef(torch.stack([own, by_mixture]))[0, 1] > 0.95


def test_it_depends_on_content_and_seed_alone():
    examples = choices(opposed(), 20)
    one, same, other = fit(examples), fit(examples), fit(examples, seed=1)
    assert one[1] == same[1] != other[1]
    for name, value in vars(one[0]).items():
        assert torch.equal(value, getattr(same[0], name)), name


def test_weights_count():
    """Pairs of weight 0 are as good as absent; a common factor changes nothing."""
    examples = choices(opposed(), 20)
    half = replace(examples, weights=np.full(len(examples), 0.5))
    one, other = fit(examples, control=False), fit(half, control=False)
    torch.testing.assert_close(one[0].means, other[0].means)
    wrong = replace(examples, chosen=examples.rejected, rejected=examples.chosen)
    both = Examples(
        examples.texts,
        *(
            np.concatenate([getattr(examples, name), getattr(wrong, name)])
            for name in ("chosen", "rejected", "users", "units")
        ),
        np.concatenate([np.ones(len(examples)), np.zeros(len(examples))]),
    )
    reward, _ = fit(both, control=False)
    assert accuracy(reward, choices(opposed(), 40, seed=1)) > 0.8


def test_too_few_units_for_cross_validation():
    one = choices(opposed(), 20, units=1)
    reward, report = fit(one)
    assert not reward.personal
    assert report["gain"]["log_loss"]["difference"] is None
    assert report["clusters"] == 1
    assert accuracy(reward, one, np.zeros(len(one), dtype=np.int64)) > 0.55


def test_a_user_alone():
    reward, report = fit(choices(opposed(np.array([1])), 40))
    assert not reward.personal
    assert report["gain"]["users"] == 1
    assert accuracy(reward, choices(opposed(np.array([1])), 40, seed=1)) > 0.7


def test_tastes_are_learned_from_some_users_and_all_are_placed(found: Fitted):
    train = choices(opposed(np.tile(SIGNS, 4)), 30)
    reward, report = fit(train, max_pairs=600)
    assert report["pairs"] == {"train": 1200, "learned_from": 600}
    assert reward.assignments.tolist() == [0 if sign > 0 else 1 for sign in np.tile(SIGNS, 4)]


# -- the parts -----------------------------------------------------------------------------------


def test_pairs_are_differences_of_projected_texts():
    examples = choices(opposed(), 7)
    matrix = np.random.default_rng(0).normal(size=(WIDTH, 4))
    scores, pairs = examples.project(matrix)
    texts = examples.texts.double().numpy()
    expected = (texts[examples.chosen] - texts[examples.rejected]) @ matrix
    np.testing.assert_allclose(pairs @ scores, expected, atol=1e-12)


def test_axes_are_those_of_the_differences():
    examples = choices(opposed(), 50)
    texts = examples.texts.double().numpy()
    differences = texts[examples.chosen] - texts[examples.rejected]
    axes = Axes.of(examples, 5)
    turned = differences @ axes.vectors
    second = turned.T @ turned / len(turned)
    np.testing.assert_allclose(second, np.diag(axes.variances), atol=1e-10)
    assert (np.diff(axes.variances) <= 0).all()
    assert axes.mean == pytest.approx((differences**2).mean())
    whitened = turned * axes.scales(0.0)
    np.testing.assert_allclose((whitened**2).mean(0), 1)


@pytest.fixture(scope="module")
def design() -> Design:
    examples = choices(opposed(), 30)
    return Design.of(examples, Axes.of(examples, 8), 11)


def test_the_shared_direction_is_a_ridge_regression(design: Design):
    """Its gradient is zero, whoever chose, and choices between the same texts add up."""
    tau, penalty = 0.5, 3.0
    direction = fit_shared(design, tau, penalty)
    margins = design.differences(direction)
    scales = design.axes.scales(tau)
    slope = (
        -scales * design.gradient(design.weights * expit(-margins)) + penalty * direction / scales
    )
    assert np.abs(slope).max() < 1e-3 * len(design)
    twice = design[np.repeat(np.arange(len(design)), 2)]
    np.testing.assert_allclose(fit_shared(twice, tau, 2 * penalty), direction, atol=2e-3)


def test_the_personal_part_vanishes_where_chance_would_do():
    """By the nuclear norm: with a strong penalty, there is none."""
    examples = choices(np.tile(opposed()[1], (10, 1)), 30)
    design = Design.of(examples, Axes.of(examples, 8), 11)
    shared = fit_shared(design, 1.0, 1.0)
    rng = np.random.default_rng(0)
    options = {"tau": 1.0, "penalty": 1.0, "dimensions": 3, "rng": rng}
    none = fit_hierarchy(design, shared, strength=3.0, **options)
    some = fit_hierarchy(design, shared, strength=0.2, **options)
    assert np.linalg.norm(none.basis @ none.modes.T) < 0.05 * np.linalg.norm(
        some.basis @ some.modes.T
    )
    np.testing.assert_allclose(
        np.linalg.norm(some.basis / design.axes.scales(1.0)[:, None]),
        np.linalg.norm(some.modes),
        rtol=0.1,
    )


def test_shuffling_keeps_units_and_how_much_everybody_judged():
    examples = choices(opposed(), 30)
    shuffled = shuffled_within(examples, np.random.default_rng(0))
    assert (shuffled.units == examples.units).all()
    assert (shuffled.chosen == examples.chosen).all()
    assert (shuffled.users != examples.users).mean() > 0.5
    for unit in np.unique(examples.units):
        rows = examples.units[:, 0] == unit
        assert sorted(shuffled.users[rows]) == sorted(examples.users[rows])


def test_shuffling_where_everybody_has_units_of_their_own():
    examples = choices(opposed(), 4)
    own = replace(examples, units=np.arange(len(examples))[:, None])
    shuffled = shuffled_within(own, np.random.default_rng(0))
    assert (shuffled.users != own.users).mean() > 0.5
    assert sorted(shuffled.users) == sorted(own.users)


@pytest.mark.parametrize(
    ("difference", "error", "users", "expected"),
    [
        (0.11, 0.1, 1000, True),
        (0.09, 0.1, 1000, False),
        (0.11, 0.1, 2, False),  # chance alone does it more often with two users
        (0.2, 0.1, 2, True),
        (-1.0, 0.1, 50, False),
        (None, None, 0, False),
        (0.1, None, 1, False),
    ],
)
def test_a_gain_is_more_than_a_standard_error(difference, error, users, expected):
    assert is_gain({"difference": difference, "se": error}, users) is expected


def test_examples_of_a_prepared_table():
    table = pd.DataFrame(
        {"user_index": [1, 2], "unit": ["a", "b"], "weight": [1.0, 2.0]}, index=[7, 3]
    )

    class Stored:
        features = torch.zeros(4, 2)

        def rows_of(self, pairs):
            return torch.tensor([0, 2]), torch.tensor([1, 3])

    found = Examples.of(table, Stored())
    assert found.units.tolist() == [[0], [1]]
    assert found.weights.tolist() == [1.0, 2.0]
    assert Examples.of(table, Stored(), by_text=True).units.tolist() == [[0, 1], [2, 3]]
    assert len(fold_rows(found.units, 2, np.random.default_rng(0))) == 2


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 100.0]), st.booleans(), st.booleans())
def test_no_data_are_too_small_or_too_alike(seed, scale, by_text, fixed):
    """A few pairs, texts that do not differ, users with one choice: always a finite reward."""
    rng = np.random.default_rng(seed)
    users, pairs, texts = (
        int(rng.integers(low, high)) for low, high in ((1, 15), (1, 30), (2, 10))
    )
    chosen = rng.integers(0, texts, pairs)
    rejected = (chosen + rng.integers(1, texts, pairs)) % texts
    units = np.column_stack([chosen, rejected]) if by_text else rng.integers(0, 5, (pairs, 1))
    examples = Examples(
        torch.from_numpy(scale * rng.normal(size=(texts, 3))).half(),
        chosen,
        rejected,
        rng.integers(1, users + 1, pairs),
        units,
        rng.uniform(0.5, 2, pairs),
    )
    clusters = 3 if fixed else None
    reward, report = fit_hierarchical(examples, users, clusters=clusters, folds=3, seed=0)
    assert all(torch.isfinite(value).all() for value in vars(reward).values())
    assert reward.weights.shape == (users + 1, report["clusters"])
    assert report["gain"]["personal"] == reward.personal


def test_leading_directions_are_the_same_for_many_users(monkeypatch: pytest.MonkeyPatch):
    """Computed one by one, or all at once where users or axes are few."""
    examples = choices(np.random.default_rng(0).normal(size=(20, WIDTH)), 20)
    design = Design.of(examples, Axes.of(examples, 8), 21)
    residuals, scales = np.random.default_rng(1).normal(size=len(design)), np.ones((8, 1))
    few = fitting._leading(design, residuals, scales, 3)
    monkeypatch.setattr(fitting, "SMALL", 0)
    many = fitting._leading(design, residuals, scales, 3)
    for one, other in zip(few, many, strict=True):
        np.testing.assert_allclose(np.abs(one), np.abs(other), atol=1e-8)

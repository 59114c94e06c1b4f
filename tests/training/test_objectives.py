"""The P-DPO family against its definitions, in float64."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import naive
from preferences import train_params
from prlhf.data import agreement
from prlhf.models.scores import Scores
from prlhf.rewards.training import reward_loss
from prlhf.training import losses
from prlhf.training.dataset import PreferenceBatch
from prlhf.training.losses import LOSSES, pdpo_loss, two_term

margins = st.lists(st.floats(-60, 60), min_size=1, max_size=5)
betas = st.floats(0.01, 5)
alphas = st.floats(0, 1)
smoothings = st.floats(0, 0.49)
names = st.sampled_from(sorted(LOSSES))


def doubles(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def loss_of(name: str, h: Tensor, beta: float, smoothing: float) -> Tensor:
    return LOSSES[name](h, train_params(beta=beta, label_smoothing=smoothing))


def batch_of(user: Tensor | None, generic: Tensor | None) -> tuple[PreferenceBatch, Tensor]:
    """A batch without rows, and values of its responses that differ by what is given, [P]."""
    given = [h for h in (user, generic) if h is not None]
    zeros = torch.zeros_like(given[0])
    batch: PreferenceBatch = PreferenceBatch(
        packed=None,  # type: ignore[arg-type]
        users=torch.zeros(len(zeros), dtype=torch.long),
        ref_chosen=zeros,
        ref_rejected=zeros,
        weight=torch.ones_like(zeros),
        as_user=user is not None,
        as_generic=generic is not None,
    )
    return batch, torch.stack([torch.stack([h, zeros], dim=-1) for h in given]).flatten()


def pdpo(user: Tensor | None, generic: Tensor | None, **changes: Any) -> Tensor:
    """The P-DPO objective of margins under both conditions."""
    batch, logps = batch_of(user, generic)
    tokens = torch.ones(len(logps), dtype=torch.long)
    model: Any = lambda packed, users: Scores(logps, tokens)  # noqa: E731
    return pdpo_loss(model, batch, train_params(**changes)).loss


def p_rm(user: Tensor | None, generic: Tensor | None, alpha: float) -> Tensor:
    """The P-RM loss of reward differences under both conditions."""
    batch, rewards = batch_of(user, generic)
    model: Any = lambda packed, users: (rewards, None)  # noqa: E731
    return reward_loss(model, batch, alpha).loss


def test_the_family_is_what_the_parameters_offer() -> None:
    assert set(LOSSES) == set(naive.LOSSES)


def test_margin_is_the_difference_of_log_ratios() -> None:
    # (-10 - -12) - (-30 - -29) = 2 - -1 = 3
    h = losses.margin(*(torch.tensor([v]) for v in (-10.0, -30.0, -12.0, -29.0)))
    assert h.tolist() == [3.0]


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_values_by_hand(loss: str) -> None:
    # h = 2, beta = 0.5, s = 0.25: z = 1; -log sigmoid(1) = 0.31326, -log sigmoid(-1) = 1.31326
    expected = {
        "sigmoid": 0.75 * 0.3132617 + 0.25 * 1.3132617,  # 0.5632617
        "robust": (0.75 * 0.3132617 - 0.25 * 1.3132617) / 0.5,  # -0.1867383
        "hinge": 0.0,
        "ipo": 1.0,  # (2 - 1)^2
    }
    got = loss_of(loss, doubles([2.0]), 0.5, 0.25)
    assert got.item() == pytest.approx(expected[loss], abs=1e-6)


@given(names, margins, betas, smoothings)
def test_every_member_and_its_gradient(
    loss: str, values: list[float], beta: float, smoothing: float
) -> None:
    h = doubles(values).requires_grad_()
    got = loss_of(loss, h, beta, smoothing)
    (slope,) = torch.autograd.grad(got.sum(), h)
    for i, value in enumerate(values):
        expected = naive.preference_loss(loss, value, beta, smoothing)
        assert got[i].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
        if loss == "hinge" and abs(1 - beta * value) < 1e-9:
            continue  # the kink has no derivative
        expected = naive.preference_slope(loss, value, beta, smoothing)
        assert slope[i].item() == pytest.approx(expected, rel=1e-7, abs=1e-9)


@given(names, st.data(), betas, alphas, smoothings)
def test_pdpo_is_the_weighted_sum_of_both_conditions(
    loss: str, data: st.DataObject, beta: float, alpha: float, smoothing: float
) -> None:
    user = data.draw(margins)
    generic = data.draw(st.lists(st.floats(-60, 60), min_size=len(user), max_size=len(user)))
    h_user, h_generic = doubles(user).requires_grad_(), doubles(generic).requires_grad_()
    got = pdpo(h_user, h_generic, alpha=alpha, beta=beta, loss=loss, label_smoothing=smoothing)
    slopes = torch.autograd.grad(got.sum(), [h_user, h_generic])
    for i, (u, g) in enumerate(zip(user, generic, strict=True)):
        expected = alpha * naive.preference_loss(loss, u, beta, smoothing)
        expected += (1 - alpha) * naive.preference_loss(loss, g, beta, smoothing)
        assert got[i].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
        for slope, weight, value in ((slopes[0], alpha, u), (slopes[1], 1 - alpha, g)):
            if loss == "hinge" and abs(1 - beta * value) < 1e-9:
                continue
            expected = weight * naive.preference_slope(loss, value, beta, smoothing)
            assert slope[i].item() == pytest.approx(expected, rel=1e-7, abs=1e-9)


@given(names, margins, betas)
def test_a_term_without_weight_need_not_be_computed(
    loss: str, values: list[float], beta: float
) -> None:
    h = doubles(values)
    other = torch.zeros_like(h)
    only_user = pdpo(h, None, alpha=1.0, beta=beta, loss=loss)
    only_generic = pdpo(None, h, alpha=0.0, beta=beta, loss=loss)
    torch.testing.assert_close(only_user, pdpo(h, other, alpha=1.0, beta=beta, loss=loss))
    torch.testing.assert_close(only_generic, pdpo(other, h, alpha=0.0, beta=beta, loss=loss))
    torch.testing.assert_close(only_user, only_generic)


@pytest.mark.parametrize(
    ("user", "generic", "alpha"), [(None, 1.0, 0.1), (1.0, None, 0.9), (None, None, 0.5)]
)
def test_a_term_with_weight_must_not_be_missing(
    user: float | None, generic: float | None, alpha: float
) -> None:
    terms = [None if t is None else torch.tensor([t]) for t in (user, generic)]
    with pytest.raises(ValueError, match="missing"):
        two_term(terms[0], terms[1], alpha)


@given(margins, betas)
def test_smoothing_of_zero_is_plain_dpo(values: list[float], beta: float) -> None:
    h = doubles(values)
    plain = doubles([-naive.log_sigmoid(beta * v) for v in values])
    torch.testing.assert_close(loss_of("sigmoid", h, beta, 0.0), plain)
    torch.testing.assert_close(loss_of("robust", h, beta, 0.0), plain)


@given(margins, betas, smoothings)
def test_robust_dpo_is_unbiased_under_flipped_labels(
    values: list[float], beta: float, flip: float
) -> None:
    """E over labels that flip with probability s of the robust loss is the clean DPO loss."""
    h = doubles(values)
    robust = partial(loss_of, "robust")
    mean = (1 - flip) * robust(h, beta, flip) + flip * robust(-h, beta, flip)
    torch.testing.assert_close(mean, loss_of("sigmoid", h, beta, 0.0), rtol=1e-6, atol=1e-6)


@given(margins, betas, smoothings)
def test_smoothing_mixes_the_loss_of_both_labels(
    values: list[float], beta: float, smoothing: float
) -> None:
    h = doubles(values)
    plain = partial(loss_of, "sigmoid")
    mixed = (1 - smoothing) * plain(h, beta, 0.0) + smoothing * plain(-h, beta, 0.0)
    torch.testing.assert_close(plain(h, beta, smoothing), mixed)


def test_extreme_margins_stay_finite_in_float32() -> None:
    h = torch.tensor([-1e4, 1e4], requires_grad=True)
    for loss in ("sigmoid", "robust", "hinge"):
        value = loss_of(loss, h, 1.0, 0.1).sum()
        (slope,) = torch.autograd.grad(value, h)
        assert torch.isfinite(value)
        assert torch.isfinite(slope).all()


def test_ipo_is_least_at_its_target_and_hinge_beyond_its_own() -> None:
    beta = 0.25
    assert loss_of("ipo", doubles([1 / (2 * beta)]), beta, 0.0).item() == 0
    assert loss_of("hinge", doubles([1 / beta, 10 / beta]), beta, 0.0).tolist() == [0, 0]


def test_a_tie_is_half_an_agreement_and_nan_none() -> None:
    values = [0.3, 0.0, -0.0, -2.0, math.nan, math.inf]
    expected = [1.0, 0.5, 0.5, 0.0, 0.0, 1.0]
    assert agreement(torch.tensor(values)).tolist() == expected
    assert agreement(np.array(values)).tolist() == expected
    assert agreement(torch.tensor(values)).dtype == torch.float32


def test_nll_is_per_token() -> None:
    # -(-12) / 4 = 3; -(-6) / 1 = 6; a response without tokens counts as one of them
    got = losses.chosen_nll(doubles([-12.0, -6.0, 0.0]), torch.tensor([4, 1, 0]))
    assert got.tolist() == [3.0, 6.0, 0.0]


def test_shortfall_counts_only_what_fell_below_the_reference() -> None:
    # (-8 - -12) / 4 = 1 nat a token below; the second rose: nothing
    chosen = doubles([-12.0, -3.0]).requires_grad_()
    got = losses.chosen_shortfall(chosen, doubles([-8.0, -6.0]), torch.tensor([4, 3]))
    assert got.tolist() == [1.0, 0.0]
    (slope,) = torch.autograd.grad(got.sum(), chosen)
    assert slope.tolist() == [-0.25, 0.0]


@given(st.lists(st.tuples(*[st.floats(-80, 0)] * 3, st.integers(1, 40)), min_size=1), alphas)
def test_both_guards_are_mixed_by_alpha(
    rows: list[tuple[float, float, float, int]], alpha: float
) -> None:
    """log pi(y_w) as user and as generic user, log pi_ref(y_w), tokens."""
    user, generic, reference = (
        doubles([row[i] for row in rows]).requires_grad_(i < 2) for i in range(3)
    )
    tokens = torch.tensor([row[3] for row in rows])
    for guard, naive_guard in (
        (lambda c: losses.chosen_nll(c, tokens), naive.chosen_nll),
        (
            lambda c: losses.chosen_shortfall(c, reference, tokens),
            naive.chosen_shortfall,
        ),
    ):
        got = two_term(guard(user), guard(generic), alpha)
        slopes = torch.autograd.grad(got.sum(), [user, generic])
        for i, (u, g, ref, n) in enumerate(rows):
            (at_u, slope_u), (at_g, slope_g) = naive_guard(u, ref, n), naive_guard(g, ref, n)
            assert got[i].item() == pytest.approx(alpha * at_u + (1 - alpha) * at_g, abs=1e-9)
            assert slopes[0][i].item() == pytest.approx(alpha * slope_u, abs=1e-12)
            assert slopes[1][i].item() == pytest.approx((1 - alpha) * slope_g, abs=1e-12)


@given(margins, alphas, st.data())
def test_reward_loss(values: list[float], alpha: float, data: st.DataObject) -> None:
    generic = data.draw(st.lists(st.floats(-60, 60), min_size=len(values), max_size=len(values)))
    as_user, as_generic = doubles(values).requires_grad_(), doubles(generic).requires_grad_()
    got = p_rm(as_user, as_generic, alpha)
    slopes = torch.autograd.grad(got.sum(), [as_user, as_generic])
    for i, (u, g) in enumerate(zip(values, generic, strict=True)):
        expected = -alpha * naive.log_sigmoid(u) - (1 - alpha) * naive.log_sigmoid(g)
        assert got[i].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        for slope, weight, value in ((slopes[0], alpha, u), (slopes[1], 1 - alpha, g)):
            expected = weight * naive.preference_slope("sigmoid", value, 1.0, 0.0)
            assert slope[i].item() == pytest.approx(expected, rel=1e-7, abs=1e-12)


@given(margins)
def test_a_reward_term_without_weight_need_not_be_computed(values: list[float]) -> None:
    difference = doubles(values)
    expected = doubles([-naive.log_sigmoid(value) for value in values])
    torch.testing.assert_close(p_rm(difference, None, 1.0), expected)
    torch.testing.assert_close(p_rm(None, difference, 0.0), expected)


@settings(max_examples=20)
@given(st.floats(-5, 5), st.floats(-5, 5), betas)
def test_gradient_pushes_the_chosen_up_and_the_rejected_down(
    chosen: float, rejected: float, beta: float
) -> None:
    """d l / d log pi(y_w) = -beta sigmoid(-beta h) (DPO, eq. 7), and its opposite for y_l."""
    c, r = doubles([chosen]).requires_grad_(), doubles([rejected]).requires_grad_()
    zero = torch.zeros(1, dtype=torch.float64)
    loss = pdpo(losses.margin(c, r, zero, zero), None, alpha=1.0, beta=beta)
    down, up = torch.autograd.grad(loss.sum(), [c, r])
    weight = 1 / (1 + math.exp(beta * (chosen - rejected)))
    assert down.item() == pytest.approx(-beta * weight, rel=1e-9)
    assert up.item() == pytest.approx(beta * weight, rel=1e-9)

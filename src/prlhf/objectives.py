"""The P-DPO family and the personalised reward-model loss: pure functions of tensors.

Notation follows the paper (arXiv:2402.05133, section 4) and `docs/architecture.md`. The implicit
reward margin of a pair under user condition `v`, in nats and without beta, is

    h(v) = [log pi(y_w|x,v) - log pi_ref(y_w|x)] - [log pi(y_l|x,v) - log pi_ref(y_l|x)]

and P-DPO minimises, over every pair, `alpha * l(h(u)) + (1 - alpha) * l(h(u_0))`, where `u` is the
user who judged the pair, `u_0` the generic user and `l` a member of `LOSSES`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

PreferenceLoss = Callable[[Tensor, float, float], Tensor]


def margin(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    """Implicit reward margin h, without beta.

    Args:
        chosen, rejected: summed log-probabilities of the responses under the policy, nats, [B].
        ref_chosen, ref_rejected: the same under the reference, [B].

    Returns:
        h [B], nats; positive where the policy moved towards the chosen response.
    """
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def sigmoid_loss(h: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """DPO, z = beta h: `-log sigmoid(z)`, or `-(1-s) log sigmoid(z) - s log sigmoid(-z)`."""
    z = beta * h
    return -(1 - label_smoothing) * F.logsigmoid(z) - label_smoothing * F.logsigmoid(-z)


def robust_loss(h: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """Robust DPO (arXiv:2403.00409, eq. 12): unbiased when labels flip with probability s < 0.5."""
    z = beta * h
    clean, flipped = -F.logsigmoid(z), -F.logsigmoid(-z)
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def ipo_loss(h: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """IPO (arXiv:2310.12036, eq. 17): `(h - 1 / (2 beta))^2`; smoothing does not apply."""
    return (h - 1 / (2 * beta)) ** 2


def hinge_loss(h: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """SLiC hinge (arXiv:2305.10425) on the implicit reward: `max(0, 1 - beta h)`."""
    return torch.relu(1 - beta * h)


LOSSES: dict[str, PreferenceLoss] = {
    "sigmoid": sigmoid_loss,
    "ipo": ipo_loss,
    "hinge": hinge_loss,
    "robust": robust_loss,
}


def two_term(user: Tensor | None, generic: Tensor | None, alpha: float) -> Tensor:
    """`alpha * user + (1 - alpha) * generic`, elementwise, as in the P-DPO objective.

    A term of weight zero may be passed as None, so that nothing has to be computed for it.

    Raises:
        ValueError: a term with a positive weight is missing.
    """
    if (user is None and alpha > 0) or (generic is None and alpha < 1):
        raise ValueError("a term with a positive weight is missing")
    if user is None or generic is None:
        only = generic if user is None else user
        assert only is not None
        return only
    return alpha * user + (1 - alpha) * generic


def pdpo_loss(
    h_user: Tensor | None,
    h_generic: Tensor | None,
    *,
    alpha: float,
    beta: float,
    loss: str = "sigmoid",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The P-DPO objective of each pair, [B] (paper, section 4.3).

    Args:
        h_user: margins under the pair's own user, [B]; may be None when `alpha` is 0.
        h_generic: margins under the generic user, [B]; may be None when `alpha` is 1.
        alpha: weight of the personalised term, in [0, 1].
        beta: strength of the pull to the reference, > 0.
        loss: a name in `LOSSES`.
        label_smoothing: assumed probability of a flipped label, in [0, 0.5).
    """
    preference_loss = LOSSES[loss]
    return two_term(
        None if h_user is None else preference_loss(h_user, beta, label_smoothing),
        None if h_generic is None else preference_loss(h_generic, beta, label_smoothing),
        alpha,
    )


def chosen_nll(chosen: Tensor, tokens: Tensor) -> Tensor:
    """Negative log-likelihood of the chosen response per token, nats, [B]."""
    return -chosen / tokens.clamp_min(1)


def chosen_shortfall(chosen: Tensor, ref_chosen: Tensor, tokens: Tensor) -> Tensor:
    """How far the chosen response fell below the reference, nats per token, [B], never negative.

    DPO is satisfied when both responses become unlikely, as long as the rejected one falls faster;
    this term is the guard of DPO-Positive (arXiv:2402.13228) per token.
    """
    return torch.relu(ref_chosen - chosen) / tokens.clamp_min(1)


def mixed_reward(z: Tensor, directions: Tensor, weights: Tensor) -> Tensor:
    """r(x, y, u) = z(x, y) . sum_k softmax(w_u)_k v_k, the reward that is linear in features.

    Args:
        z: features of R texts, or their differences, float [R, r].
        directions: v_k, float [K, r].
        weights: w_u of each text's user, float [R, K].

    Returns:
        float [R].
    """
    return (z * (torch.softmax(weights, dim=-1) @ directions)).sum(-1)


def reward_loss(
    difference_user: Tensor | None, difference_generic: Tensor | None, *, alpha: float
) -> Tensor:
    """P-RM loss of each pair, [B]: `-alpha log sigmoid(dr(u)) - (1-alpha) log sigmoid(dr(u_0))`.

    Args:
        difference_user: r(x, y_w, u) - r(x, y_l, u), [B]; may be None when `alpha` is 0.
        difference_generic: the same for the generic user, [B]; may be None when `alpha` is 1.
        alpha: weight of the personalised term.
    """
    return two_term(
        None if difference_user is None else -F.logsigmoid(difference_user),
        None if difference_generic is None else -F.logsigmoid(difference_generic),
        alpha,
    )

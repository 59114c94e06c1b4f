"""The P-DPO objective: the loss of each pair of a batch, and the figures to watch.

Notation follows the paper (arXiv:2402.05133, section 4) and `docs/architecture.md`. The implicit
reward margin of a pair under user condition `v`, in nats and without beta, is

    h(v) = [log pi(y_w|x,v) - log pi_ref(y_w|x)] - [log pi(y_l|x,v) - log pi_ref(y_l|x)]

and P-DPO minimises, over every pair, `alpha * l(h(u)) + (1 - alpha) * l(h(u_0))`, where `u` is the
user who judged the pair, `u_0` the generic user and `l` a member of `LOSSES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prlhf.data import ROUNDING, agreement
from prlhf.params import TrainParams
from prlhf.training.dataset import PreferenceBatch


@dataclass(frozen=True)
class PairLosses:
    """Losses and metrics of P pairs, each [P]; metrics of a condition not computed are missing.

    Where `known` has an entry for a metric, bool [P], it says which pairs' values count; without
    one all do.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    known: dict[str, Tensor] = field(default_factory=dict)


# -- the family of losses ------------------------------------------------------------------------


def sigmoid_loss(h: Tensor, train: TrainParams) -> Tensor:
    """DPO, z = beta h: `-log sigmoid(z)`, or `-(1-s) log sigmoid(z) - s log sigmoid(-z)`."""
    z = train.beta * h
    return -(1 - train.label_smoothing) * F.logsigmoid(z) - train.label_smoothing * F.logsigmoid(-z)


def robust_loss(h: Tensor, train: TrainParams) -> Tensor:
    """Robust DPO (arXiv:2403.00409, eq. 12): unbiased when labels flip with probability s < 0.5."""
    z, s = train.beta * h, train.label_smoothing
    clean, flipped = -F.logsigmoid(z), -F.logsigmoid(-z)
    return ((1 - s) * clean - s * flipped) / (1 - 2 * s)


def ipo_loss(h: Tensor, train: TrainParams) -> Tensor:
    """IPO (arXiv:2310.12036, eq. 17): `(h - 1 / (2 beta))^2`; smoothing does not apply."""
    return (h - 1 / (2 * train.beta)) ** 2


def hinge_loss(h: Tensor, train: TrainParams) -> Tensor:
    """SLiC hinge (arXiv:2305.10425) on the implicit reward: `max(0, 1 - beta h)`."""
    return torch.relu(1 - train.beta * h)


LOSSES: Final[dict[str, Callable[[Tensor, TrainParams], Tensor]]] = {
    "sigmoid": sigmoid_loss,
    "ipo": ipo_loss,
    "hinge": hinge_loss,
    "robust": robust_loss,
}
"""By `train.loss`: margins h [P], nats, to losses [P]."""


def margin(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    """Implicit reward margin h [P], nats; positive where the policy moved towards the chosen one.

    Args:
        chosen, rejected: summed log-probabilities of the responses under the policy, nats, [P].
        ref_chosen, ref_rejected: the same under the reference, [P].
    """
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def chosen_nll(chosen: Tensor, tokens: Tensor) -> Tensor:
    """Negative log-likelihood of the chosen response per token, nats, [P]."""
    return -chosen / tokens.clamp_min(1)


def chosen_shortfall(chosen: Tensor, ref_chosen: Tensor, tokens: Tensor) -> Tensor:
    """How far the chosen response fell below the reference, nats per token, [P], never negative.

    DPO is satisfied when both responses become unlikely, as long as the rejected one falls faster;
    DPO-Positive (arXiv:2402.13228) prevents that by this term, here per token.
    """
    return torch.relu(ref_chosen - chosen) / tokens.clamp_min(1)


def two_term(user: Tensor | None, generic: Tensor | None, alpha: float) -> Tensor:
    """`alpha * user + (1 - alpha) * generic`, elementwise, as in the P-DPO objective.

    A term of weight zero may be None, so that it need not be computed.

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


# -- batches -------------------------------------------------------------------------------------


def pdpo_loss(model: nn.Module, batch: PreferenceBatch, train: TrainParams) -> PairLosses:
    """The P-DPO objective of each pair (paper, section 4.3), all conditions in one forward pass.

    Args:
        model: a `PersonalizedLM`, possibly wrapped for distribution.
        batch: pairs on the model's device.
        train: the loss and its weights.
    """
    scores = model(batch.packed, users=batch.penalized)
    tokens = scores.tokens.view(-1, len(batch), 2)[0, :, 0]
    margins: dict[str, Tensor] = {}
    losses: dict[str, Tensor] = {}
    nlls: dict[str, Tensor] = {}
    shortfalls: dict[str, Tensor] = {}
    for name, (chosen, rejected) in batch.by_condition(scores.logps).items():
        margins[name] = margin(chosen, rejected, batch.ref_chosen, batch.ref_rejected)
        losses[name] = LOSSES[train.loss](margins[name], train)
        nlls[name] = chosen_nll(chosen, tokens)
        shortfalls[name] = chosen_shortfall(chosen, batch.ref_chosen, tokens)
    loss, nll, shortfall = (
        two_term(terms.get("user"), terms.get("generic"), batch.user_weight(train.alpha))
        for terms in (losses, nlls, shortfalls)
    )
    total = loss + train.nll_coef * nll + train.dpop_coef * shortfall
    watched = {"nll": nll.detach(), "preference_loss": loss.detach()}
    return with_metrics(batch, total, scores.penalty, margins, watched)


def with_metrics(
    batch: PreferenceBatch,
    loss: Tensor,
    penalty: Tensor | None,
    margins: Mapping[str, Tensor],
    watched: Mapping[str, Tensor],
) -> PairLosses:
    """Add the regulariser to the losses, and each condition's accuracy and margin to the metrics.

    Args:
        batch: P pairs.
        loss: of each pair, [P].
        penalty: the regulariser of each pair's user, [P], or None.
        margins: by how much the chosen response is ahead, [P], by condition: `user`, `generic`.
        watched: further metrics, [P].
    """
    metrics, known = dict(watched), {}
    if batch.drawn is not None:
        # Each pair was computed under the one condition drawn for it; the rows are the users'.
        margins = dict.fromkeys(("user", "generic"), margins["user"])
    for condition, h in margins.items():
        for name, value in (("accuracy", agreement(h, ROUNDING)), ("margin", h.detach())):
            metrics[f"{name}_{condition}"] = value
            if batch.drawn is not None:
                counted = batch.drawn if condition == "user" else ~batch.drawn
                known[f"{name}_{condition}"] = counted
    return PairLosses(loss if penalty is None else loss + penalty, metrics, known)

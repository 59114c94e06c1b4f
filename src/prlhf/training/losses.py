"""The loss of a batch of pairs, and what is to be known about it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from prlhf import objectives
from prlhf.training.pairs import PairBatch


@dataclass(frozen=True)
class Objective:
    """What is minimised; see `train.*` in `params.yaml` for the meaning of each number."""

    alpha: float
    beta: float
    loss: str = "sigmoid"
    label_smoothing: float = 0.0
    nll: float = 0.0
    chosen_penalty: float = 0.0


@dataclass(frozen=True)
class PairLosses:
    """What a batch of P pairs gives, each [P]; metrics of a condition not computed are missing.

    `known` says for which pairs a metric is known, bool [P]; without an entry it is for all.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    known: dict[str, Tensor] = field(default_factory=dict)


def pair_losses(model: nn.Module, batch: PairBatch, objective: Objective) -> PairLosses:
    """The P-DPO objective of every pair of a batch, with both conditions in one forward pass.

    Args:
        model: a `PersonalizedLM`, possibly wrapped for distribution.
        batch: pairs on the model's device.
        objective: the loss and its weights.
    """
    pairs = len(batch)
    scores = model(batch.packed, users=batch.penalised)
    by_condition = scores.logps.view(-1, pairs, 2)
    tokens = scores.tokens.view(-1, pairs, 2)[0, :, 0]
    conditions = iter(by_condition)
    terms: dict[str, Tensor] = {}
    watched = Watched(batch)
    nlls: dict[str, Tensor] = {}
    shortfalls: dict[str, Tensor] = {}
    for name, present in (("user", batch.as_user), ("generic", batch.as_generic)):
        if not present:
            continue
        chosen, rejected = next(conditions).unbind(-1)
        h = objectives.margin(chosen, rejected, batch.ref_chosen, batch.ref_rejected)
        terms[name] = h
        nlls[name] = objectives.chosen_nll(chosen, tokens)
        shortfalls[name] = objectives.chosen_shortfall(chosen, batch.ref_chosen, tokens)
        watched.add(name, accuracy=agreement(h), margin=h.detach())
    alpha = weight_of_user(batch, objective.alpha)
    loss = objectives.pdpo_loss(
        terms.get("user"),
        terms.get("generic"),
        alpha=alpha,
        beta=objective.beta,
        loss=objective.loss,
        label_smoothing=objective.label_smoothing,
    )
    nll = objectives.two_term(nlls.get("user"), nlls.get("generic"), alpha)
    shortfall = objectives.two_term(shortfalls.get("user"), shortfalls.get("generic"), alpha)
    watched.metrics["nll"] = nll.detach()
    watched.metrics["preference_loss"] = loss.detach()
    total = loss + objective.nll * nll + objective.chosen_penalty * shortfall
    return watched.losses(total, scores.penalty)


class Watched:
    """Metrics of the pairs of a batch by the condition they were computed under."""

    def __init__(self, batch: PairBatch) -> None:
        self.drawn = batch.drawn
        self.metrics: dict[str, Tensor] = {}
        self.known: dict[str, Tensor] = {}

    def add(self, condition: str, **values: Tensor) -> None:
        """Values [P] of pairs under `user` or `generic`, or under what was drawn for each."""
        for name, value in values.items():
            if self.drawn is None:
                self.metrics[f"{name}_{condition}"] = value
                continue
            for drawn, known in (("user", self.drawn), ("generic", ~self.drawn)):
                self.metrics[f"{name}_{drawn}"] = value
                self.known[f"{name}_{drawn}"] = known

    def losses(self, loss: Tensor, penalty: Tensor | None) -> PairLosses:
        """The losses [P] with the regulariser of each pair's user, and the metrics."""
        return PairLosses(loss if penalty is None else loss + penalty, self.metrics, self.known)


def agreement(margin: Tensor) -> Tensor:
    """1 where the chosen response is ahead, 0.5 where there is a tie, else 0, [P]."""
    return (margin > 0).float() + 0.5 * (margin == 0).float()


def weight_of_user(batch: PairBatch, alpha: float) -> float:
    """The weight of the personalised term, given which conditions were computed."""
    if batch.as_user and batch.as_generic:
        return alpha
    # One condition stands for both (a uniform user model), or the other has no weight, or one was
    # drawn with these weights as probabilities.
    return 1.0 if batch.as_user else 0.0

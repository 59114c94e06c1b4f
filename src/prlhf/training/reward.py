"""Training the personalised reward model (P-RM) on pairs, and its accuracy on held-out ones."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

import pandas as pd
from torch import Tensor, nn

from prlhf import objectives
from prlhf.evaluation.accuracy import as_generic, per_user, served
from prlhf.models.reward_model import PersonalizedRewardModel
from prlhf.models.user_model import GENERIC
from prlhf.training.finetune import Run, fit
from prlhf.training.losses import PairLosses, Watched, agreement, weight_of_user
from prlhf.training.pairs import PairBatch, PairTable
from prlhf.training.trainer import PairTrainer, load_trained

if TYPE_CHECKING:
    from prlhf.params.training import RewardTrainParams


def reward_losses(model: nn.Module, batch: PairBatch, alpha: float) -> PairLosses:
    """The P-RM loss of every pair of a batch, with both conditions in one forward pass.

    Args:
        model: a `PersonalizedRewardModel`, possibly wrapped for distribution.
        batch: pairs on the model's device; their reference log-probabilities are not looked at.
        alpha: weight of the personalised term.
    """
    scores = model(batch.packed, users=batch.penalised)
    by_condition = iter(scores.rewards.view(-1, len(batch), 2))
    differences: dict[str, Tensor] = {}
    watched = Watched(batch)
    for name, present in (("user", batch.as_user), ("generic", batch.as_generic)):
        if present:
            chosen, rejected = next(by_condition).unbind(-1)
            difference = differences[name] = chosen - rejected
            watched.add(name, accuracy=agreement(difference), margin=difference.detach())
    loss = objectives.reward_loss(
        differences.get("user"), differences.get("generic"), alpha=weight_of_user(batch, alpha)
    )
    watched.metrics["preference_loss"] = loss.detach()
    return watched.losses(loss, scores.penalty)


class RewardTrainer(PairTrainer):
    """Trains adapter, user model and head of a `PersonalizedRewardModel`.

    Args:
        model: adapter, user model and head trainable, everything else frozen.
        alpha: weight of the personalised term.
        options: as `PairTrainer` takes them.
    """

    def __init__(self, model: PersonalizedRewardModel, *, alpha: float, **options: Any) -> None:
        super().__init__(model, alpha=alpha, **options)
        self.alpha = alpha

    def pair_losses(self, model: nn.Module, batch: PairBatch) -> PairLosses:
        return reward_losses(model, batch, self.alpha)

    def load_model(self, directory: Path) -> None:
        model = cast(PersonalizedRewardModel, self.model)
        load_trained(model.lm, directory)
        model.load_head(directory)


def fit_reward_model(
    model: PersonalizedRewardModel, params: RewardTrainParams, **run: Unpack[Run]
) -> pd.DataFrame:
    """Train adapter, user model and head in place.

    Args:
        model: on a LoRA-wrapped language model.
        params: `train_reward_model.*` of `params.yaml`.
        run: see `prlhf.training.finetune.Run`.

    Returns:
        The training curves.
    """
    trainer = partial(RewardTrainer, model, alpha=params.alpha)
    return fit(trainer, model.lm, params, where="train_reward_model", **run)


def score_held_out(
    model: PersonalizedRewardModel, test: pd.DataFrame, unseen: pd.DataFrame, label: str
) -> pd.DataFrame:
    """Reward differences of held-out pairs, in the columns of `prlhf.evaluation.accuracy`.

    Seen users' pairs are scored as their users and as the generic user, unseen users' as the
    generic user.
    """
    keys = ["pair_id", "prompt_id", "user_id", "group"]
    parts = []
    for table, split, condition in (
        (test, "test", "user"),
        (test, "test", "generic"),
        (unseen, "unseen", "generic"),
    ):
        pairs = PairTable(table, None, model.lm.encoder)
        rows = [pair.row(pair.user_index if condition == "user" else GENERIC) for pair in pairs]
        chosen, rejected = model.score(rows, label=label).view(len(rows), 2).unbind(-1)
        parts.append(
            table[keys].assign(split=split, condition=condition, margin=(chosen - rejected).numpy())
        )
    return pd.concat(parts, ignore_index=True)


def accuracy_report(scored: pd.DataFrame) -> dict[str, Any]:
    """Held-out accuracy in the form of `reports/pretrain.json`, and each user's.

    Args:
        scored: what `score_held_out` returns.

    Returns:
        `accuracy`: means over users, who count equally: `personalised` (seen users as
        themselves), `generic` (the same users as if unknown), `unseen`, and `worst_user` among the
        seen; None where there are no such users. `pairs`: how many were scored. `users`: accuracy
        and pairs by user id, in the condition in which each is served.
    """
    table = per_user(scored)
    own, unknown = served(table), as_generic(table)
    seen, unseen = own[own["seen"]]["accuracy"], own[~own["seen"]]["accuracy"]

    def figure(value: float) -> float | None:
        return None if math.isnan(value) else float(value)

    return {
        "accuracy": {
            "personalised": figure(seen.mean()),
            "generic": figure(unknown["accuracy"].mean()),
            "unseen": figure(unseen.mean()),
            "worst_user": figure(seen.min()),
        },
        "pairs": {
            "test": int(own[own["seen"]]["pairs"].sum()),
            "unseen": int(own[~own["seen"]]["pairs"].sum()),
        },
        "users": {
            row["user_id"]: {
                "seen": bool(row["seen"]),
                "accuracy": float(row["accuracy"]),
                "pairs": int(row["pairs"]),
            }
            for row in own.to_dict("records")
        },
    }

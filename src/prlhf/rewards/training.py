"""Training the personalised reward model (P-RM): its loss, and which pairs it may learn from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pandas as pd
import torch.nn.functional as F
from torch import Tensor, nn

from prlhf.data import GENERIC, index_users
from prlhf.infra.errors import UserError
from prlhf.models.personalized import PersonalizedLM
from prlhf.params import RewardTrainParams
from prlhf.rewards.lm import PersonalizedRewardModel
from prlhf.training.dataset import PreferenceBatch
from prlhf.training.losses import PairLosses, two_term, with_metrics
from prlhf.training.trainer import PreferenceTrainer


def reward_loss(model: nn.Module, batch: PreferenceBatch, alpha: float) -> PairLosses:
    """The P-RM loss of each pair: `-alpha log sigmoid(dr(u)) - (1 - alpha) log sigmoid(dr(u_0))`.

    `dr` is r(x, y_w, .) - r(x, y_l, .); all conditions are computed in one forward pass.

    Args:
        model: a `PersonalizedRewardModel`, possibly wrapped for distribution.
        batch: pairs on the model's device; their reference log-probabilities are not used.
        alpha: weight of the personalised term.
    """
    rewards, penalty = model(batch.packed, users=batch.penalized)
    differences: dict[str, Tensor] = {}
    losses: dict[str, Tensor] = {}
    for name, (chosen, rejected) in batch.by_condition(rewards).items():
        differences[name] = chosen - rejected
        losses[name] = -F.logsigmoid(differences[name])
    loss = two_term(losses.get("user"), losses.get("generic"), batch.user_weight(alpha))
    watched = {"preference_loss": loss.detach()}
    return with_metrics(batch, loss, penalty, differences, watched)


class RewardTrainer(PreferenceTrainer):
    """Trains adapter, user model and head of a `PersonalizedRewardModel`."""

    objective: RewardTrainParams

    @property
    def lm(self) -> PersonalizedLM:
        return cast(PersonalizedRewardModel, self.model).lm

    def pair_losses(self, model: nn.Module, batch: PreferenceBatch) -> PairLosses:
        return reward_loss(model, batch, self.objective.alpha)

    def load_model(self, directory: Path) -> None:
        super().load_model(directory)
        cast(PersonalizedRewardModel, self.model).load_head(directory)


@dataclass(frozen=True)
class Division:
    """The prepared pairs that a reward model is trained with, with its own `user_index`.

    Attributes:
        learned: Pairs to train on.
        watched: Pairs to follow the training with.
        users: Ids of the users it knows, in index order; None for the seen users.
    """

    learned: pd.DataFrame
    watched: pd.DataFrame
    users: Sequence[str] | None = None


def divide(tables: Mapping[str, pd.DataFrame], pairs: str) -> Division:
    """Choose the pairs that a reward model learns from.

    A reward model that is to judge must not have learned from the pairs that the judged models were
    trained on, because it would repeat their mistakes and call them right, nor from any pair about
    a prompt that it judges, which are the test prompts.

    Args:
        tables: Prepared pairs: train, validation, test, unseen.
        pairs: `train`: learn from what the methods are trained on, know the seen users. `held_out`:
            learn from validation pairs, and from unseen users' pairs about other than test
            prompts; know the users of these pairs; watch the training pairs.

    Raises:
        UserError: There is nothing held out to learn from and to be tested on.
    """
    if pairs == "train":
        return Division(tables["train"], tables["validation"])
    unseen = tables["unseen"]
    on_test = unseen["prompt_split"] == "test"
    learned = pd.concat([tables["validation"], unseen[~on_test]], ignore_index=True)
    users = sorted(set(learned["user_id"]))
    if set(users).isdisjoint([*tables["test"]["user_id"], *unseen[on_test]["user_id"]]):
        raise UserError(
            "no user has held-out pairs both to learn from and to be tested on",
            where="params.yaml: train_reward_model.pairs",
            fix="choose train, or a larger split.validation",
        )
    index = index_users(users)

    def numbered(table: pd.DataFrame) -> pd.DataFrame:
        found = table["user_id"].map(index).fillna(GENERIC).astype("int64")
        return table.assign(user_index=found)

    return Division(numbered(learned), numbered(tables["train"]), users)

"""A reward model as judge: a P-RM that learned the users from pairs it is not asked about.

It must not have learned from what it judges, nor, if it can be helped, from what the judged models
were trained on: it would then repeat their mistakes and call them right. Test prompts are dealt
into folds, and a prompt is judged by a model fitted to

- the users' test pairs about prompts of other folds, and their validation pairs, neither of which
  the judged models were trained on;
- all pairs of users held out of training, but for those about prompts of the same fold;
- if asked for, the training pairs, too.

Its verdicts on held-out choices are therefore as honest as those on generated answers, and how many
of them it gets right says how far to trust it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from prlhf.data.randomness import shuffled
from prlhf.errors import UserError
from prlhf.training.pretrain import Examples, RewardModel, RewardOptions, train_reward_model
from prlhf.training.reference_files import text_key

if TYPE_CHECKING:
    import pandas as pd


class Scorer(Protocol):
    """A personalised reward r(x, y, u)."""

    def __call__(
        self, users: Sequence[str], prompts: Sequence[str], answers: Sequence[str]
    ) -> NDArray[np.float64]:
        """The reward of each answer to its user, `[N]`; NaN for users that are not known.

        Differences between answers to one prompt are log-odds that the user takes one of them.
        """

    def knows(self, users: Sequence[str], prompts: Sequence[str]) -> NDArray[np.bool_]:
        """Whether it has learned the user of each prompt, from pairs about others, `[N]`."""


@dataclass(frozen=True)
class Features:
    """Mean hidden states of texts under the base model.

    Attributes:
        rows: Row of `values` by `text_key(prompt, response)`.
        values: float32 [N, d].
    """

    rows: Mapping[str, int]
    values: torch.Tensor

    def of(self, prompts: Sequence[str], texts: Sequence[str]) -> torch.Tensor:
        """Features of responses, [n, d]."""
        return self.values[
            [self.rows[text_key(*both)] for both in zip(prompts, texts, strict=True)]
        ]

    def __or__(self, other: Features) -> Features:
        """Both together; a text in both has the features of `other`."""
        start = len(self.values)
        rows = dict(self.rows) | {key: start + row for key, row in other.rows.items()}
        return Features(rows, torch.cat([self.values, other.values]))


@dataclass(frozen=True)
class Fitted:
    """A P-RM and the users that it learned: index by id, from 1."""

    model: RewardModel
    users: Mapping[str, int]


@dataclass(frozen=True)
class CrossFitted:
    """A `Scorer` in which each prompt has a model that has not seen it.

    Attributes:
        features: Of every text that is scored.
        folds: Which fold a prompt is in.
        fitted: The model of each fold.
    """

    features: Features
    folds: Mapping[str, int]
    fitted: Sequence[Fitted]

    def __call__(
        self, users: Sequence[str], prompts: Sequence[str], answers: Sequence[str]
    ) -> NDArray[np.float64]:
        rewards = np.full(len(users), np.nan)
        known = self.knows(users, prompts)
        for number, one in enumerate(self.fitted):
            rows = [
                i for i, prompt in enumerate(prompts) if known[i] and self.folds[prompt] == number
            ]
            if rows:
                features = self.features.of([prompts[i] for i in rows], [answers[i] for i in rows])
                indices = torch.tensor([one.users[users[i]] for i in rows])
                # The reward is linear: the reward of a text is its difference from nothing.
                rewards[rows] = one.model.reward_differences(features, indices).double().numpy()
        return rewards

    def knows(self, users: Sequence[str], prompts: Sequence[str]) -> NDArray[np.bool_]:
        """See `Scorer`."""
        return np.array(
            [
                (fold := self.folds.get(prompt)) is not None and user in self.fitted[fold].users
                for user, prompt in zip(users, prompts, strict=True)
            ],
            dtype=bool,
        )


def cross_fit(
    pairs: pd.DataFrame,
    prompts: Sequence[str],
    features: Features,
    *,
    folds: int,
    options: RewardOptions,
    seed: int,
) -> CrossFitted:
    """Fit a model for each fold of the prompts that are to be judged.

    Args:
        pairs: `user_id, prompt, chosen, rejected`: all pairs that may be learned from.
        prompts: That are to be judged, distinct.
        features: Of the pairs and of what is to be judged.
        folds: How many; no more than there are prompts.
        options: Of the P-RM; `clusters` must be a number.
        seed: Of the folds and the fits.

    Raises:
        UserError: There are no pairs to fit one of the models to.
    """
    order = shuffled(prompts, seed, "judge folds")
    number = {prompt: place % folds for place, prompt in enumerate(order)}
    place = pairs["prompt"].map(number).fillna(-1).to_numpy()
    fitted = []
    for fold in range(min(folds, len(order))):
        table = pairs[place != fold]
        if table.empty:
            raise UserError(
                "there are no pairs about other prompts to fit a reward model to",
                where="params.yaml: judge.kind",
                fix="choose another judge, or a larger split.test or split.validation",
            )
        users = {user: i for i, user in enumerate(sorted(set(table["user_id"])), 1)}
        fitted.append(Fitted(_fit(table, users, features, options, seed), users))
    return CrossFitted(features, number, fitted)


def _fit(
    table: pd.DataFrame,
    users: Mapping[str, int],
    features: Features,
    options: RewardOptions,
    seed: int,
) -> RewardModel:
    prompts = list(table["prompt"])
    differences = features.of(prompts, list(table["chosen"])) - features.of(
        prompts, list(table["rejected"])
    )
    indices = torch.tensor([users[user] for user in table["user_id"]], dtype=torch.long)
    train = Examples(differences, indices)
    nothing = Examples(differences[:0], indices[:0])
    return train_reward_model(train, nothing, len(users), options, seed)


@dataclass
class RewardJudge:
    """See `judges.Judge`.

    Attributes:
        scorer: The reward.
        tie: Distance from 0.5 up to which a probability of winning is a tie.
        about: For judge.json.
        column: Where it says how probable it is that the first answer wins.
    """

    scorer: Scorer
    tie: float
    about: Mapping[str, Any] = field(default_factory=dict)
    name: str = "reward model"
    description: str = (
        "A personalised reward model compared the answers. It learned each user from held-out "
        "choices about other prompts, and sees only what a linear reading of the base model's "
        "hidden states shows."
    )
    column: str = "probability"

    def knows(self, questions: pd.DataFrame) -> NDArray[np.bool_]:
        """See `Judge`: users that the reward model learned from pairs about other prompts."""
        return self.scorer.knows(list(questions["user_id"]), list(questions["prompt"]))

    def verdicts(self, questions: pd.DataFrame) -> pd.DataFrame:
        """See `Judge`; also, in `column`, the probability that the first answer wins."""
        import pandas as pd

        users, prompts = list(questions["user_id"]), list(questions["prompt"])
        first = self.scorer(users, prompts, list(questions["first"]))
        second = self.scorer(users, prompts, list(questions["second"]))
        # As a hyperbolic tangent, the logistic function does not overflow.
        probability = 0.5 + 0.5 * np.tanh((first - second) / 2)
        decided = np.abs(probability - 0.5) > self.tie
        verdict = np.where(decided, np.sign(probability - 0.5), 0).astype(np.int8)
        return pd.DataFrame({"verdict": pd.array(verdict, dtype="Int8"), self.column: probability})

    def report(self) -> dict[str, Any]:
        """What it was fitted to, for judge.json."""
        return dict(self.about)

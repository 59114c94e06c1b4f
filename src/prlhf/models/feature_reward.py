"""The personalised reward model on the frozen base model's features, as pretraining fits it.

    r(x, y, u) = (h(x, y) P) . sum_k softmax(w_u)_k v_k

where `h` is the mean last hidden state of the base model over the response `y` (paper, section 4.2,
on frozen features). It takes seconds to fit, and one forward pass of the base model to ask.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prlhf.data.contract import canonical_prompt
from prlhf.errors import UserError
from prlhf.io import read_json, write_json
from prlhf.models.base import Encoder, load_base, read_source
from prlhf.models.packing import Row
from prlhf.models.personalized import PersonalizedLM, Prompt
from prlhf.objectives import mixed_reward

CARD = "reward_model.json"
WEIGHTS = "reward_model.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class FeatureReward:
    """What is fitted.

    Attributes:
        projection: P, float32 [d, r].
        directions: v_k, float32 [K, r].
        weights: w_u, float32 [N + 1, K]; row 0 is the generic user's.
    """

    projection: Tensor
    directions: Tensor
    weights: Tensor

    def __call__(self, features: Tensor, users: Tensor) -> Tensor:
        """r of features, or of differences of features, float32 [R, d], for users, int64 [R]."""
        return mixed_reward(features @ self.projection, self.directions, self.weights[users])


def save_feature_reward(
    fitted: FeatureReward,
    directory: Path,
    *,
    users: Sequence[str],
    base: Path,
    max_prompt: int,
    max_response: int,
    about: dict[str, Any],
) -> None:
    """Write a directory that `FeatureRewardModel.from_pretrained` reads.

    Args:
        fitted: the reward model.
        directory: an existing one; the card points to the base model relative to it.
        users: ids of the users in index order, the generic one not among them.
        base: directory of the base model whose features it was fitted on.
        max_prompt, max_response: limits of the texts that it was fitted on, in tokens.
        about: what the card records besides.
    """
    tensors = {name: value.contiguous() for name, value in vars(fitted).items()}
    save_file(tensors, str(directory / WEIGHTS), metadata={"format": "pt"})
    path = Path(os.path.relpath(base, directory)).as_posix()
    card = {
        "format": FORMAT,
        "base": {"path": path, **read_source(base)},
        "tokens": {"max_prompt": max_prompt, "max_response": max_response},
        **about,
        "users": list(users),
    }
    write_json(directory / CARD, card)


class FeatureRewardModel:
    """r(x, y, u): what a user thinks of a response, by the base model's features of it.

    Args:
        lm: the base model as the reference, with the limits that the features were made under.
        fitted: what was fitted on its features.
        users: ids of the users in index order, the generic one not among them.
    """

    def __init__(self, lm: PersonalizedLM, fitted: FeatureReward, users: Sequence[str]) -> None:
        self.lm = lm
        self.fitted = fitted
        self.users = list(users)
        self._index = {user: i for i, user in enumerate(self.users, 1)}

    def reward(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        users: Sequence[str | None],
        *,
        label: str = "reward",
    ) -> list[float]:
        """What the user of each position thinks of the response to the prompt there.

        As for `PersonalizedRewardModel.reward`: an id that is not known, or None, is the generic
        user, and only differences between responses to one prompt, for one user, mean anything.

        Raises:
            UserError: the lists differ in length.
        """
        if not len(prompts) == len(responses) == len(users):
            raise UserError(
                f"{len(prompts)} prompts, {len(responses)} responses and {len(users)} users",
                fix="give one each",
            )
        if not prompts:
            return []
        encoder = self.lm.encoder
        asked = list(zip(map(canonical_prompt, prompts), responses, strict=True))
        # A text's features are nobody's: each is computed once, whoever is asked about it.
        texts: dict[str, list[str]] = {}
        for prompt, response in dict.fromkeys(asked):
            texts.setdefault(prompt, []).append(response)
        rows = [
            Row(0, encoder.prompt(prompt), [encoder.response(text) for text in found])
            for prompt, found in texts.items()
        ]
        features = self.lm.score(rows, label=label, features=True).features
        assert features is not None, "asked for"
        order = ((prompt, text) for prompt, found in texts.items() for text in found)
        place = {text: row for row, text in enumerate(order)}
        index = torch.tensor([self._index.get(user, 0) if user else 0 for user in users])
        return self.fitted(features[[place[text] for text in asked]], index).tolist()

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, *, base: str | Path | None = None, dtype: str = "auto"
    ) -> FeatureRewardModel:
        """Load a directory written by `save_feature_reward`, ready to judge.

        Args:
            directory: for example `models/user_model/reward_model`.
            base: directory of the base model, where it has moved since.
            dtype: of the base model's weights; see `model.dtype` in `params.yaml`.

        Raises:
            UserError: something is missing, damaged or was made by a newer version.
        """
        directory = Path(directory)
        if not (directory / CARD).is_file():
            raise UserError(
                "holds no reward model",
                where=directory,
                fix="pretrain with pretrain.method: reward",
            )
        card: dict[str, Any] = read_json(directory / CARD)
        if card["format"] > FORMAT:
            raise UserError(
                "was written by a newer prlhf", where=directory / CARD, fix="upgrade prlhf"
            )
        try:
            fitted = FeatureReward(**load_file(str(directory / WEIGHTS)))
        except (OSError, SafetensorError, TypeError) as error:
            raise UserError(
                "is missing or damaged",
                where=directory / WEIGHTS,
                fix="run `dvc repro -f pretrain_user_model`",
            ) from error
        path = Path(base) if base else Path(os.path.normpath(directory / card["base"]["path"]))
        loaded = load_base(path, dtype)
        lm = PersonalizedLM.reference(loaded, Encoder(loaded.tokenizer, **card["tokens"]))
        return cls(lm, fitted, card["users"])

"""The hierarchical reward as a directory: numbers as safetensors, the rest as a card in JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from prlhf.infra.errors import UserError
from prlhf.infra.io import read_json, write_json
from prlhf.people.hierarchical import HierarchicalReward

CARD: Final = "reward_model.json"
WEIGHTS: Final = "reward_model.safetensors"
FORMAT: Final = 2


def save_reward(
    reward: HierarchicalReward,
    directory: Path,
    *,
    users: Sequence[str],
    base: Path,
    source: Mapping[str, Any],
    max_prompt: int,
    max_response: int,
    about: Mapping[str, Any],
) -> None:
    """Write a directory that `prlhf.rewards.lm.FeatureRewardModel.from_pretrained` reads.

    Args:
        reward: what was fitted.
        directory: an existing one; the card points to the base model relative to it.
        users: ids of the users in index order, without the generic user.
        base: directory of the base model whose features it was fitted on.
        source: where that model is from; see `prlhf.models.base.read_source`.
        max_prompt, max_response: limits of the texts that it was fitted on, in tokens.
        about: what the card records besides.
    """
    tensors = {name: value.contiguous() for name, value in vars(reward).items()}
    save_file(tensors, str(directory / WEIGHTS), metadata={"format": "pt"})
    card = {
        "format": FORMAT,
        "base": {"path": Path(os.path.relpath(base, directory)).as_posix(), **source},
        "tokens": {"max_prompt": max_prompt, "max_response": max_response},
        **about,
        "users": list(users),
    }
    write_json(directory / CARD, card)


def load_reward(directory: Path) -> tuple[HierarchicalReward, dict[str, Any]]:
    """Read what `save_reward` wrote: the reward and its card.

    Raises:
        UserError: something is missing, damaged or was made by another version.
    """
    if not (directory / CARD).is_file():
        raise UserError(
            "holds no reward model", where=directory, fix="pretrain with pretrain.method: reward"
        )
    card: dict[str, Any] = read_json(directory / CARD)
    if card["format"] > FORMAT:
        raise UserError("was written by a newer prlhf", where=directory / CARD, fix="upgrade prlhf")
    if card["format"] < FORMAT:
        raise UserError(
            "was written by an older prlhf",
            where=directory / CARD,
            fix="run `dvc repro -f pretrain_user_model`",
        )
    try:
        return HierarchicalReward(**load_file(str(directory / WEIGHTS))), card
    except (OSError, SafetensorError, TypeError) as error:
        raise UserError(
            "is missing or damaged",
            where=directory / WEIGHTS,
            fix="run `dvc repro -f pretrain_user_model`",
        ) from error

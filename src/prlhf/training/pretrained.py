"""What user-model pretraining hands to training: `models/user_model/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from prlhf.io import read_json, write_json
from prlhf.models.base import BaseModel
from prlhf.models.user_model import UserModel
from prlhf.models.user_model_files import load_user_model, save_user_model
from prlhf.training.initial import initial_user_model

CARD = "pretrained.json"
WEIGHTS = "weights.safetensors"


@dataclass
class Pretrained:
    """Who the users are, as far as is known before the language model is tuned.

    Attributes:
        users: ids of the seen users, in index order.
        options: `tokens`, `clusters`, `init_scale`, `generic_pull`, `offset_penalty`, `seed`.
        weights: logits over clusters, float32 [N + 1, K], row 0 the generic user's; None without
            pretraining.
        trained: user models that were trained already (`soft_prompt`), by `variant`.
    """

    users: Sequence[str]
    options: Mapping[str, Any]
    weights: Tensor | None = None
    trained: dict[str, UserModel] = field(default_factory=dict)

    def initial(self, kind: str, base: BaseModel, *, text: bool = False) -> UserModel:
        """The user model that training starts from, in front of users' texts or without them."""
        if variant(kind, text) in self.trained:
            return self.trained[variant(kind, text)]
        return initial_user_model(kind, self.users, base, weights=self.weights, **self.options)

    def untrained(self, users: Sequence[str]) -> Pretrained:
        """The same sizes for other users, of whom nothing is known yet."""
        clusters = {} if self.weights is None else {"clusters": self.weights.shape[1]}
        return Pretrained(users, {**self.options, **clusters})

    def save(self, directory: Path) -> None:
        """Write to an existing directory."""
        card = {
            "users": list(self.users),
            "options": dict(self.options),
            "trained": sorted(self.trained),
        }
        write_json(directory / CARD, card)
        if self.weights is not None:
            save_file({"weights": self.weights.contiguous()}, str(directory / WEIGHTS))
        for name, user_model in self.trained.items():
            (directory / name).mkdir()
            save_user_model(user_model, directory / name, {})


def variant(kind: str, text: bool) -> str:
    """Name of what is trained for methods of one kind that read users' texts, or do not."""
    return f"{kind}-text" if text else kind


def load_pretrained(directory: Path) -> Pretrained:
    """Read what `Pretrained.save` wrote."""
    card = read_json(directory / CARD)
    weights = directory / WEIGHTS
    return Pretrained(
        users=card["users"],
        options=card["options"],
        weights=load_file(str(weights))["weights"] if weights.is_file() else None,
        trained={name: load_user_model(directory / name) for name in card["trained"]},
    )

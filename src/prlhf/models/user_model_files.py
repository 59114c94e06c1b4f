"""A user model's files: its card, which is also that of the model it belongs to, and its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from prlhf.errors import UserError
from prlhf.io import read_json, write_json
from prlhf.models.user_model import UserModel, build

FORMAT = 1
CARD = "user_model.json"
TABLES = "user_model.safetensors"


def save_user_model(user_model: UserModel, directory: Path, about: dict[str, Any]) -> None:
    """Write a user model (card and tables) to an existing directory."""
    tables = {name: t.detach().cpu().contiguous() for name, t in user_model.state_dict().items()}
    save_file(tables, str(directory / TABLES), metadata={"format": "pt"})
    card = {**about, "users": user_model.users, "user_model": user_model.config()}
    write_json(directory / CARD, card)


def load_user_model(directory: Path) -> UserModel:
    """Read a user model back, on the CPU."""
    card = read_card(directory)
    user_model = build(card["users"], card["user_model"])
    user_model.load_state_dict(load_file(str(directory / TABLES)))
    return user_model


def read_card(directory: Path) -> dict[str, Any]:
    """The card of a model directory.

    Raises:
        UserError: no card, or of a newer format.
    """
    if not (directory / CARD).is_file():
        raise UserError(f"no {CARD} here", where=directory, fix="name a directory under models/")
    card: dict[str, Any] = read_json(directory / CARD)
    if card.get("format", FORMAT) > FORMAT:
        raise UserError("was written by a newer prlhf", where=directory / CARD, fix="upgrade prlhf")
    return card

"""Models by the name of their method, as the stages after training want them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prlhf.models.base import Encoder, load_base
from prlhf.models.personalized import PersonalizedLM

if TYPE_CHECKING:
    from prlhf.params import TokenParams

BASE_METHOD = "base"
BASE_PATH = Path("models/base")

PROMPTED_METHOD = "prompted"
"""The base model behind the user's text, untrained: its directory holds a card and no adapter."""


def load_method(name: str, dtype: str, tokens: TokenParams) -> PersonalizedLM:
    """The model in `models/<name>`, or the base model itself for `base`."""
    if name != BASE_METHOD:
        return PersonalizedLM.from_pretrained(Path("models") / name, base=BASE_PATH, dtype=dtype)
    base = load_base(BASE_PATH, dtype)
    encoder = Encoder(base.tokenizer, tokens.max_prompt, tokens.max_response)
    return PersonalizedLM.reference(base, encoder)

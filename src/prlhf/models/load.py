"""Models by the name of their method, as the stages after training want them."""

from __future__ import annotations

from pathlib import Path

from prlhf.models.base import Encoder, load_base
from prlhf.models.personalized import PersonalizedLM

BASE_METHOD = "base"
BASE_PATH = Path("models/base")


def load_method(name: str, dtype: str, max_prompt: int, max_response: int) -> PersonalizedLM:
    """The trained model `models/<name>`, or the untrained base model for `base`."""
    if name != BASE_METHOD:
        return PersonalizedLM.from_pretrained(Path("models") / name, base=BASE_PATH, dtype=dtype)
    base = load_base(BASE_PATH, dtype)
    return PersonalizedLM.reference(base, Encoder(base.tokenizer, max_prompt, max_response))

"""Stage `reference`: log pi_ref and features of every distinct text, one forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from prlhf.io import atomic_path, read_parquet
from prlhf.models.base import Encoder, load_base
from prlhf.models.personalized import PersonalizedLM
from prlhf.training.reference import reference_pass, save_reference

if TYPE_CHECKING:
    from prlhf.params import ModelParams, TokenParams

PARAMS: Final = ("model", "tokens")

BASE: Final = Path("models/base")
PREPARED: Final = Path("data/prepared")
OUTPUT: Final = Path("data/reference")
SPLITS: Final = ("train", "validation", "test", "unseen")


def run(*, model: ModelParams, tokens: TokenParams) -> None:
    """Write `data/reference`."""
    tables = [
        read_parquet(PREPARED / f"{split}.parquet", ["prompt", "chosen", "rejected"])
        for split in SPLITS
    ]
    base = load_base(BASE, model.dtype)
    lm = PersonalizedLM.reference(
        base, Encoder(base.tokenizer, tokens.max_prompt, tokens.max_response)
    )
    reference = reference_pass(lm, tables)
    with atomic_path(OUTPUT, directory=True) as directory:
        save_reference(reference, directory)

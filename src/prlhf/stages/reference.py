"""Stage `reference`: log pi_ref and features of every distinct text, one forward pass.

It also writes the card of `prompted`, the method that is the base model behind the user's text. All
that stands in it is what this stage reads: which base model, and the limits on its texts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from prlhf import distributed
from prlhf.io import read_parquet
from prlhf.models.base import Encoder, load_base
from prlhf.models.load import PROMPTED_METHOD
from prlhf.models.personalized import PersonalizedLM
from prlhf.training.checkpoints import ROOT, discard, run_key
from prlhf.training.reference import reference_pass
from prlhf.training.reference_files import save_reference

if TYPE_CHECKING:
    from prlhf.params import ModelParams, TokenParams

PARAMS: Final = ("model", "tokens")

BASE: Final = Path("models/base")
PREPARED: Final = Path("data/prepared")
OUTPUT: Final = Path("data/reference")
PROMPTED: Final = Path("models") / PROMPTED_METHOD
SPLITS: Final = ("train", "validation", "test", "unseen")
COLUMNS: Final = ("prompt", "chosen", "rejected", "user_text")


def run(*, model: ModelParams, tokens: TokenParams) -> None:
    """Write `data/reference` and `models/prompted`."""
    settings = {"reference": True, "model": model.model_dump(), "tokens": tokens.model_dump()}
    key = run_key(settings, [BASE, *(PREPARED / f"{split}.parquet" for split in SPLITS)])
    distributed.require_agreement(key)
    tables = [read_parquet(PREPARED / f"{split}.parquet", COLUMNS) for split in SPLITS]
    base = load_base(BASE, model.dtype)
    limits = (tokens.max_prompt, tokens.max_response)
    reading = Encoder(base.tokenizer, *limits, tokens.max_user_text)
    lm = PersonalizedLM.reference(base, Encoder(base.tokenizer, *limits))
    parts = ROOT / f"reference-{key}"
    reference = reference_pass(lm, tables, reading if tokens.reference_text else None, parts=parts)
    with distributed.output(OUTPUT) as directory:
        save_reference(reference, directory)
    prompted = PersonalizedLM.reference(base, reading, {"method": PROMPTED_METHOD})
    with distributed.output(PROMPTED) as directory:
        prompted.save_pretrained(directory)
    if distributed.is_main():
        discard(parts)

"""Stage `reference`: log pi_ref and features of every distinct response, in one forward pass.

It also writes the card of the method `prompted`, the base model that reads users' texts. That is
all there is of it: nobody trains it, and the card holds what this stage reads anyway, the base
model's name and the limits on its texts.
"""

from typing import Final

from prlhf.data import PROMPTED_METHOD
from prlhf.data.reference import save_reference
from prlhf.infra import distributed
from prlhf.infra.io import CHECKPOINTS, discard, read_parquet, run_key
from prlhf.models.base import Encoder, load_base
from prlhf.models.personalized import PersonalizedLM
from prlhf.params import ModelParams, TokenParams
from prlhf.reference import reference_pass
from prlhf.stages.paths import BASE, REFERENCE, method_directory, split_table

PARAMS: Final = ("model", "tokens")

TABLES: Final = tuple(split_table(split) for split in ("train", "validation", "test", "unseen"))
COLUMNS: Final = ("prompt", "chosen", "rejected", "user_text")


def run(*, model: ModelParams, tokens: TokenParams) -> None:
    """Write `data/reference` and `models/prompted`."""
    settings = {"reference": True, "model": model.model_dump(), "tokens": tokens.model_dump()}
    key = run_key(settings, [BASE, *TABLES])
    distributed.require_agreement(key)
    tables = [read_parquet(table, COLUMNS) for table in TABLES]
    base = load_base(BASE, model.dtype)
    lm = PersonalizedLM.reference(base, Encoder.from_params(base.tokenizer, tokens))
    reading = Encoder.from_params(base.tokenizer, tokens, text=True)
    parts = CHECKPOINTS / f"reference-{key}"
    reference = reference_pass(lm, tables, reading if tokens.reference_text else None, parts=parts)
    with distributed.output(REFERENCE) as directory:
        save_reference(reference, directory)
    prompted = PersonalizedLM.reference(base, reading, {"method": PROMPTED_METHOD})
    with distributed.output(method_directory(PROMPTED_METHOD)) as directory:
        prompted.save_pretrained(directory)
    if distributed.is_main():
        discard(parts)

"""Stage `reference`: log pi_ref and features of every distinct response, in one forward pass.

It also writes the card of the method `prompted`, the base model that reads users' texts. That is
all there is of it: nobody trains it, and the card holds what this stage reads anyway, the base
model's name and the limits on its texts.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Final

from prlhf.data import PROMPTED_METHOD
from prlhf.infra import distributed
from prlhf.infra.cache import ResultCache
from prlhf.infra.io import read_parquet, run_key
from prlhf.models.base import Encoder, load_base
from prlhf.models.personalized import PersonalizedLM
from prlhf.params import ModelParams, ReferenceParams, TokenParams
from prlhf.reference import reference_pass
from prlhf.stages.paths import BASE, REFERENCE, method_directory, split_table

PARAMS: Final = ("model", "tokens", "reference")

TABLES: Final = tuple(split_table(split) for split in ("train", "validation", "test", "unseen"))
COLUMNS: Final = ("prompt", "chosen", "rejected", "user_text")

CACHE: Final = Path(".cache/reference")
LIMIT: Final = 32 * 2**30
"""Bytes that the cache may hold: four million texts on a model of width 4096."""


def run(*, model: ModelParams, tokens: TokenParams, reference: ReferenceParams) -> None:
    """Write `data/reference` and `models/prompted`."""
    tables = [read_parquet(table, COLUMNS) for table in TABLES]
    base = load_base(BASE, model.dtype)
    settings = {
        "limits": tokens.model_dump(exclude={"reference_text"}),
        "computed": [model.dtype, str(base.model.dtype), base.device.type],
        "versions": [version(name) for name in ("torch", "transformers", "tokenizers")],
    }
    of = run_key(settings, [BASE])
    distributed.require_agreement(
        run_key({"of": of, "tokens": tokens, "reference": reference}, TABLES)
    )
    lm = PersonalizedLM.reference(base, Encoder.from_params(base.tokenizer, tokens))
    reading = Encoder.from_params(base.tokenizer, tokens, text=True)
    with distributed.output(REFERENCE) as directory:
        reference_pass(
            lm,
            tables,
            directory,
            reading if tokens.reference_text else None,
            features=reference.features,
            cache=ResultCache(CACHE, LIMIT, of),
        )
    prompted = PersonalizedLM.reference(base, reading, {"method": PROMPTED_METHOD})
    with distributed.output(method_directory(PROMPTED_METHOD)) as directory:
        prompted.save_pretrained(directory)

"""Stage `reference`: log pi_ref and features of every distinct response, in one forward pass.

Before that it counts what the token limits cut off, and sets the pairs aside that they leave equal.
It also writes the card of the method `prompted`, the base model that reads users' texts. That is
all there is of it: nobody trains it, and the card holds what this stage reads anyway, the base
model's name and the limits on its texts.
"""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

from prlhf.data import PROMPTED_METHOD, SPLITS
from prlhf.data.reference import SET_ASIDE
from prlhf.infra import distributed
from prlhf.infra.cache import ResultCache
from prlhf.infra.io import read_parquet, run_key, write_json, write_parquet
from prlhf.infra.progress import say
from prlhf.models.base import Encoder, load_base, positions_of
from prlhf.models.personalized import PersonalizedLM
from prlhf.params import ModelParams, ReferenceParams, TokenParams
from prlhf.reference import reference_pass
from prlhf.stages.paths import BASE, REFERENCE, REFERENCE_REPORT, method_directory, split_table
from prlhf.truncation import measure

PARAMS: Final = ("model", "tokens", "reference")

TABLES: Final = {split: split_table(split) for split in (*SPLITS, "unseen")}
COLUMNS: Final = ("pair_id", "user_id", "row", "prompt", "chosen", "rejected", "user_text")

CACHE: Final = Path(".cache/reference")
LIMIT: Final = 32 * 2**30
"""Bytes that the cache may hold: four million texts on a model of width 4096."""


def run(*, model: ModelParams, tokens: TokenParams, reference: ReferenceParams) -> None:
    """Write `data/reference`, `models/prompted` and `reports/reference.json`.

    Raises:
        UserError: models cannot tell the responses of any pair of a split apart.
    """
    tables = {split: read_parquet(path, COLUMNS) for split, path in TABLES.items()}
    base = load_base(BASE, model.dtype)
    settings = {
        "limits": tokens.model_dump(exclude={"reference_text"}),
        "computed": [model.dtype, str(base.model.dtype), base.device.type],
        "versions": [version(name) for name in ("torch", "transformers", "tokenizers")],
    }
    of = run_key(settings, [BASE])
    distributed.require_agreement(
        run_key({"of": of, "tokens": tokens, "reference": reference}, list(TABLES.values()))
    )
    lm = PersonalizedLM.reference(base, Encoder.from_params(base.chat, tokens))
    reading = Encoder.from_params(base.chat, tokens, text=True)
    unlimited = {f"max_{text}": sys.maxsize for text in ("prompt", "response", "user_text")}
    whole = Encoder.from_params(base.chat, tokens.model_copy(update=unlimited), text=True)
    truncation = measure(tables, reading, whole, positions_of(base.model))
    for warning in truncation.warnings:
        say(f"reference: warning: {warning}")
    with distributed.output(REFERENCE) as directory:
        reference_pass(
            lm,
            [truncation.told_apart(table, split) for split, table in tables.items()],
            directory,
            reading if tokens.reference_text else None,
            features=reference.features,
            cache=ResultCache(CACHE, LIMIT, of),
        )
        if distributed.is_main():
            write_parquet(directory / SET_ASIDE, truncation.set_aside)
    prompted = PersonalizedLM.reference(base, reading, {"method": PROMPTED_METHOD})
    with distributed.output(method_directory(PROMPTED_METHOD)) as directory:
        prompted.save_pretrained(directory)
    if distributed.is_main():
        write_json(REFERENCE_REPORT, truncation.summary)

"""Stage `base_model`: the frozen base language model, pinned, in one directory."""

from pathlib import Path
from typing import Final

from transformers import AutoTokenizer

from prlhf.hub import CHAT_TEMPLATES, resolve_model
from prlhf.infra.errors import UserError, loading
from prlhf.infra.io import SOURCE, atomic_path, write_json
from prlhf.infra.progress import say
from prlhf.infra.signals import time_limit
from prlhf.models.chat import Conventions
from prlhf.models.conventions import declared_stops, find_conventions
from prlhf.params import ModelParams
from prlhf.params.training import TokenizerParams
from prlhf.stages.paths import BASE

PARAMS: Final = ("model",)

RENDERING: Final = 10.0
"""Seconds of computing that the check of a chat template may take: it needs less than one, and one
that prints without end fills 200 MiB in each."""


def run(*, model: ModelParams) -> None:
    """Write `models/base`, with what it resolved to and its conventions in `prlhf_source.json`.

    Raises:
        UserError: see `prlhf.hub.resolve_model` and `prlhf.models.conventions.find_conventions`.
    """
    with atomic_path(BASE, directory=True) as directory:
        record = resolve_model(model, directory)
        conventions = check(model.tokenizer, directory)
        write_json(directory / SOURCE, record | {"conventions": conventions.record()})
    pinned = record.get("commit") or record.get("sha256")
    say(f"base_model: {record['name']} ({record['kind']}, {str(pinned)[:12]})")


def check(given: TokenizerParams, directory: Path) -> Conventions:
    """Find the conventions of the model in `directory`, and say them.

    A chat template that prints today's date is replaced by one that prints the given day.

    Raises:
        UserError: the tokenizer or its chat template cannot be used.
    """
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    own = given.chat_template is None
    where = "model.name" if own else "model.tokenizer.chat_template"
    fix = f"{'set model.tokenizer.chat_template: ' if own else 'use '}Jinja, or one of "
    fix += ", ".join(CHAT_TEMPLATES)
    endless = UserError("the model's chat template comes to no end", where=where, fix=fix)
    try:
        with loading("the tokenizer cannot be used", where=where), time_limit(RENDERING, endless):
            found = find_conventions(
                tokenizer,
                stops=declared_stops(directory, tokenizer),
                date=given.date,
                where=where,
                fix=fix,
            )
    except MemoryError:
        problem = "the model's chat template takes more memory than there is"
        raise UserError(problem, where=where, fix=fix) from None
    stops = [*tokenizer.convert_ids_to_tokens(list(found.stops)), *found.stop_texts]
    said = f"base_model: an answer ends with {found.end!r}"
    if others := [stop for stop in stops if stop != found.end]:
        said += f", and generation stops at {' and '.join(map(repr, others))}, too"
    say(said)
    if tokenizer.chat_template and found.end not in found.marks:
        say("base_model: warning: its chat template has no token that ends an answer")
    if found.date:
        tokenizer.save_pretrained(directory)
        say(
            f"base_model: its chat template prints today's date: from now on {found.date} "
            "(model.tokenizer.date)"
        )
    return found

"""Answers to prompts: who is asked what, and batched answers for any mix of users."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final, cast

import numpy as np
import pandas as pd
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from prlhf.data import GENERIC
from prlhf.data.prompts import PromptError, canonical_prompt, prompt_id
from prlhf.infra.errors import UserError
from prlhf.infra.kept import KeptWork
from prlhf.ingest.files import LINES, PACKED, file_format, read_lines, read_values
from prlhf.models.personalized import PersonalizedLM, Prompt
from prlhf.sampling import Completion, decoding, sample

FIELD: Final = "prompt"
KEY: Final = "params.yaml: generate.prompts_path"
FORMATS: Final = (".json", *LINES, ".parquet", ".txt")


def generate(
    lm: PersonalizedLM,
    prompts: Sequence[Prompt],
    users: Sequence[str | int | None],
    texts: Sequence[str | None] | None = None,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    top_p: float = 0.9,
    repetition_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
    seed: int = 0,
) -> list[str]:
    """Answers to `prompts`, each for the user at the same position.

    Args:
        lm: a trained model.
        prompts: text, or chat messages.
        users: your own ids, in any spelling that ingestion would take for the same; None for
            somebody who was not trained on, who gets the generic user's answer.
        texts: the users' texts, for models that read them (`text: true`), as in training; None for
            a user without one.
        max_new_tokens, temperature, top_p, repetition_penalty, no_repeat_ngram: see `generate` in
            params.yaml.
        seed: seed of the sampling.

    Raises:
        UserError: the lists differ in length, a user is unknown, or there are texts for a model
            that reads none.
    """
    if len(prompts) != len(users):
        raise UserError(f"{len(prompts)} prompts but {len(users)} users", fix="give one each")
    texts = lm.encoder.given_texts(texts, len(prompts))
    requests = [
        (index, canonical_prompt(prompt))
        for prompt, index in zip(prompts, lm.user_model.indices(users), strict=True)
    ]
    config = decoding(
        lm.encoder.chat.conventions.stops,
        stop_texts=lm.encoder.chat.conventions.stop_texts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram=no_repeat_ngram,
    )
    completions = complete(lm, requests, texts, config=config, seed=seed)
    return [lm.encoder.chat.decode(completion.ids) for completion in completions]


def complete(
    lm: PersonalizedLM,
    requests: Sequence[tuple[int, str]],
    texts: Sequence[str | None] | None = None,
    *,
    config: GenerationConfig,
    seed: int = 0,
    batch_size: int = 32,
    label: str = "generate",
    work: KeptWork | None = None,
) -> list[Completion]:
    """Answer (user index, canonical prompt) requests, with users mixed within a batch.

    Args:
        lm: a trained model.
        requests: whom to answer, and what.
        texts: the users' texts, as `Encoder.user_texts` gives them.
        config, seed, batch_size, label, work: see `sample`.

    Returns:
        One completion per request, in order.
    """
    lm.eval()
    texts = texts or [None] * len(requests)
    users = [user for user, _ in requests]
    prompts = [
        lm.encoder.prompt(prompt, text) for (_, prompt), text in zip(requests, texts, strict=True)
    ]
    done: dict[int, Completion] = {}
    for served in lm.by_adapter(users):

        def prefix(row: int, served: list[int] = served) -> Tensor:
            return lm.prefix(users[served[row]], prompts[served[row]])

        completions = sample(
            cast(PreTrainedModel, lm.lm),
            [lm.user_model.tokens + len(prompts[i]) for i in served],
            prefix,
            config=config,
            seed=seed,
            batch_size=batch_size,
            label=label,
            tokenizer=lm.base.tokenizer,
            # Requests for one adapter have batches of their own.
            work=None if work is None else work.part(str(served[0])),
        )
        done.update(zip(served, completions, strict=True))
    return [done[i] for i in range(len(requests))]


# -- what to answer ------------------------------------------------------------------------------


def read_prompts(path: Path) -> pd.DataFrame:
    """The distinct prompts of a file: `prompt_id`, `prompt` (canonical), in the file's order.

    Args:
        path: a JSON list, JSON lines, a Parquet table with a column `prompt`, or text with one
            prompt per line; packed or not. A JSON value is a prompt (text, or a list of chat
            messages), or an object with one under `prompt`.

    Raises:
        UserError: the file is missing, damaged or of an unknown format, something in it is not a
            prompt, or it holds no prompt.
    """
    suffix = file_format(path)
    if not path.is_file():
        problem = "is not a file" if path.exists() else "no such file"
        raise UserError(problem, where=path, fix=f"see {KEY}")
    if suffix not in FORMATS:
        raise UserError(
            f"unknown kind of file {suffix or 'without a suffix'}",
            where=path,
            fix=f"known: {', '.join(FORMATS)}, each also with {' or '.join(PACKED)}",
        )
    found: dict[str, str] = {}
    for _, where, value in read_lines(path) if suffix == ".txt" else read_values(path, (FIELD,)):
        if isinstance(value, dict):
            if FIELD not in value:
                raise UserError(f"has no field {FIELD}", where=where)
            value = value[FIELD]
        try:
            prompt = canonical_prompt(value)
        except PromptError as error:
            raise UserError(str(error), where=f"{where}: {FIELD}") from error
        found.setdefault(prompt_id(prompt), prompt)
    if not found:
        raise UserError("holds no prompt", where=path, fix=f"see {KEY}")
    return pd.DataFrame({"prompt_id": list(found), "prompt": list(found.values())})


def new_prompts(prompts: pd.DataFrame, learned: Collection[str], path: Path) -> pd.DataFrame:
    """The prompts whose ids are not `learned`: in the training or validation data.

    Raises:
        UserError: none of those from `path` is left.
    """
    new = prompts[~prompts["prompt_id"].isin(learned)].reset_index(drop=True)
    if new.empty:
        raise UserError(
            "all its prompts are in the training or validation data",
            where=path,
            fix="answers to these show memory; name other prompts",
        )
    return new


def sample_prompts(found: pd.DataFrame, most: int | None, seed: int) -> pd.DataFrame:
    """Distinct prompts (columns prompt_id, prompt), or `most` of them chosen by `seed`."""
    prompts = found.drop_duplicates("prompt_id").sort_values("prompt_id", ignore_index=True)
    if most is None or len(prompts) <= most:
        return prompts
    chosen = np.random.default_rng(seed).permutation(len(prompts))[:most]
    return prompts.iloc[np.sort(chosen)].reset_index(drop=True)


def request_table(
    prompts: pd.DataFrame,
    users: pd.DataFrame,
    *,
    personalized: bool,
    reads_text: bool,
    most: int | None,
) -> pd.DataFrame:
    """Whom to answer what: every prompt for the generic user, and for users with their own answers.

    Args:
        prompts: columns prompt_id, prompt.
        users: the prepared users table.
        personalized: whether the method answers seen users differently.
        reads_text: whether it reads users' texts, and so answers unseen users differently, too.
        most: of the seen and of the unseen users, spread evenly over the table; None for all.

    Returns:
        Columns prompt_id, prompt, condition (`user`, `unseen`, `generic`), user_id, user_index,
        group, user_text.
    """
    parts = []
    if personalized:
        seen = users[users["seen"]].sort_values("user_index", ignore_index=True)
        parts.append(_each(seen, prompts, most).assign(condition="user"))
    if reads_text:
        unseen = users[~users["seen"]].sort_values("user_id", ignore_index=True)
        parts.append(_each(unseen, prompts, most).assign(condition="unseen"))
    generic = prompts.assign(
        condition="generic", user_id=None, group=None, user_index=GENERIC, user_text=None
    )
    return pd.concat([*parts, generic], ignore_index=True)


def _each(users: pd.DataFrame, prompts: pd.DataFrame, most: int | None) -> pd.DataFrame:
    """Every prompt for every user, or for `most` of them."""
    if most is not None and len(users) > most:
        users = users.iloc[np.linspace(0, len(users) - 1, most).round().astype(int)]
    return users[["user_id", "user_index", "group", "user_text"]].merge(prompts, how="cross")

"""`prlhf simulate`: sample the responses behind the built-in data sets from a base model.

This follows the paper's synthetic tasks on a small scale: the base model answers every prompt under
opposed instructions (a system message and, for most, worked examples). Users of the built-in data
sets prefer one kind of answer, and P-DPO has to find out which from their choices alone, because it
does not see the instruction. Only answers that ended by themselves and satisfy their recipe are
kept, so none is cut off.
"""

import gzip
import json
from pathlib import Path
from typing import Final, cast

import torch
from torch import Tensor

from prlhf.infra.errors import UserError
from prlhf.infra.io import atomic_path
from prlhf.infra.progress import say
from prlhf.models.base import BaseModel, load_base
from prlhf.sampling import decoding, sample
from prlhf.tasks import Recipe, built_in_tasks

TEMPERATURE: Final = 0.7
TOP_P: Final = 0.9
BATCH_SIZE: Final = 32


def run(
    name: str, *, base: Path, prompts: Path, out: Path, seed: int, keep: int = 2, rounds: int = 6
) -> None:
    """Sample answers to every prompt under every instruction of a task.

    Args:
        name: `length` or `style`.
        base: directory of the base model.
        prompts: text file, one prompt per line.
        out: `.jsonl.gz` to write: `prompt_id, prompt, instruction, response, tokens` per line.
        seed: seed of the sampling; the same seed on the same machine gives the same file.
        keep: answers to keep for every prompt and instruction.
        rounds: how often to try again for prompts that have too few answers.

    Raises:
        UserError: the task is unknown, or there are no prompts.
    """
    tasks = built_in_tasks()
    if name not in tasks:
        raise UserError(f"unknown data set {name!r}", fix=f"use one of {', '.join(tasks)}")
    lines = prompts.read_text(encoding="utf-8").splitlines()
    questions = {i: line.strip() for i, line in enumerate(lines) if line.strip()}
    if not questions:
        raise UserError("holds no prompts", where=prompts, fix="write one prompt a line")
    lm = load_base(base)
    rows: list[dict[str, object]] = []
    for number, recipe in enumerate(tasks[name].recipes):
        own_seed, label = seed + 1_000_003 * number, f"{name}/{recipe.instruction}"
        found = _answers(lm, recipe, questions, own_seed, label, keep=keep, rounds=rounds)
        count, without = sum(map(len, found.values())), sum(not kept for kept in found.values())
        say(f"{recipe.instruction}: {count} answers, {without} prompts without an answer")
        rows += [
            {
                "prompt_id": i,
                "prompt": questions[i],
                "instruction": recipe.instruction,
                "response": text,
                "tokens": tokens,
            }
            for i, kept in found.items()
            for text, tokens in kept.items()
        ]
    rows.sort(key=lambda row: (row["prompt_id"], row["instruction"], row["response"]))
    written = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with atomic_path(out) as temporary:
        temporary.write_bytes(gzip.compress(written.encode("utf-8"), 9, mtime=0))


def _answers(
    lm: BaseModel,
    recipe: Recipe,
    questions: dict[int, str],
    seed: int,
    label: str,
    *,
    keep: int,
    rounds: int,
) -> dict[int, dict[str, int]]:
    """For each question up to `keep` different answers, with their numbers of tokens."""
    found: dict[int, dict[str, int]] = {i: {} for i in questions}
    encoded = {
        i: lm.chat.conversation(_conversation(recipe, question))
        for i, question in questions.items()
    }
    config = decoding(
        lm.chat.conventions.stops,
        stop_texts=lm.chat.conventions.stop_texts,
        max_new_tokens=recipe.max_tokens,
        temperature=TEMPERATURE,
        top_p=TOP_P,
    )
    for attempt in range(rounds):
        missing = [i for i, kept in found.items() for _ in range(keep - len(kept))]
        if not missing:
            break

        def prefix(row: int, missing: list[int] = missing) -> Tensor:
            ids = torch.tensor(encoded[missing[row]], device=lm.device)
            return cast(Tensor, lm.model.get_input_embeddings()(ids))

        completions = sample(
            lm.model,
            [len(encoded[i]) for i in missing],
            prefix,
            config=config,
            seed=seed + 10_007 * attempt,
            batch_size=BATCH_SIZE,
            label=f"{label}, round {attempt + 1}",
            tokenizer=lm.tokenizer,
        )
        for i, completion in zip(missing, completions, strict=True):
            text = lm.chat.decode(completion.ids)
            if completion.finished and recipe.accepts(text):
                found[i].setdefault(text, len(completion.ids))
    return found


def _conversation(recipe: Recipe, question: str) -> list[dict[str, str]]:
    turns = [{"role": "system", "content": recipe.system}]
    for asked, answered in recipe.examples:
        turns.append({"role": "user", "content": asked})
        turns.append({"role": "assistant", "content": answered})
    return [*turns, {"role": "user", "content": question}]

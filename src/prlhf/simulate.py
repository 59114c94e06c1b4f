"""`prlhf simulate`: sample the responses behind the built-in data sets from a base model.

Following the paper's synthetic tasks in small form, every prompt is answered by the base model
itself under opposed instructions (a system message and two worked examples). The instruction is
forgotten afterwards: users of the built-in data sets prefer one kind of answer, and P-DPO has to
find out which from their choices alone. Only answers that ended by themselves and keep to their
recipe's bounds are kept, so nothing is cut off for the sake of length.
"""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from prlhf.errors import UserError
from prlhf.io import atomic_path
from prlhf.models.base import BaseModel, encode_messages, load_base
from prlhf.models.generation import Sampling, complete
from prlhf.progress import say

SAMPLING_TEMPERATURE = 0.7
SAMPLING_TOP_P = 0.9
BATCH_SIZE = 32


@dataclass(frozen=True)
class Recipe:
    """One way of answering: what the model is told and which answers are kept.

    Bounds are inclusive; `max_tokens` is also where sampling gives up on an answer.
    """

    instruction: str
    system: str
    examples: tuple[tuple[str, str], ...]
    min_words: int
    max_words: int
    max_tokens: int
    max_sentences: int = 99

    def accepts(self, text: str) -> bool:
        words = len(text.split())
        return (
            self.min_words <= words <= self.max_words
            and "\n" not in text
            and text.rstrip()[-1:] in tuple('.!?"')
            and count_sentences(text) <= self.max_sentences
        )


def count_sentences(text: str) -> int:
    return len([part for part in re.split(r"[.!?]+(?:\s|$)", text) if part.strip()])


SOUP = "How can I keep soup warm for longer?"
LEAVES = "Why do leaves fall in autumn?"

LENGTH = (
    Recipe(
        "short",
        "Answer in one short sentence.",
        (
            (SOUP, "Pour it into a vacuum flask that you have warmed with hot water."),
            (LEAVES, "Trees drop their leaves to save water during the cold months."),
        ),
        min_words=6,
        max_words=22,
        max_tokens=40,
        max_sentences=1,
    ),
    Recipe(
        "long",
        "Answer in one full paragraph of three or four sentences.",
        (
            (
                SOUP,
                "Pour the soup into a vacuum flask, because the empty space between its walls "
                "lets very little heat escape. Warm the flask first by filling it with boiling "
                "water for a few minutes. Fill it to the top, since air inside cools the soup, "
                "and close the lid at once. Treated this way, the soup will still be hot at "
                "lunch.",
            ),
            (
                LEAVES,
                "As the days grow shorter, trees make less sugar in their leaves and begin to "
                "draw the useful parts back into the branches. Then a thin layer of cells grows "
                "at the base of each stem and cuts off its water. The leaf dries and the wind "
                "takes it away. Without leaves, the tree loses less water through the winter.",
            ),
        ),
        min_words=40,
        max_words=75,
        max_tokens=110,
    ),
)

STYLE = (
    Recipe(
        "simple",
        "Explain it to a young child, in short and easy words.",
        (
            (SOUP, "Put the soup in a special bottle that keeps it hot, and shut the lid tight!"),
            (LEAVES, "Trees get sleepy when it is cold, so they let go of their leaves and rest."),
        ),
        min_words=8,
        max_words=45,
        max_tokens=70,
    ),
    Recipe(
        "expert",
        "Explain it to an expert, with precise technical terms.",
        (
            (
                SOUP,
                (
                    "Minimise conductive and convective losses with a preheated, evacuated "
                    "double-walled vessel, and limit the headspace to reduce evaporative cooling."
                ),
            ),
            (
                LEAVES,
                "Decreasing photoperiod lowers auxin flux, which sensitises the abscission zone "
                "to ethylene; enzymatic hydrolysis of the middle lamella then detaches the "
                "petiole.",
            ),
        ),
        min_words=8,
        max_words=45,
        max_tokens=80,
    ),
    Recipe(
        "concise",
        "Answer in one short sentence.",
        LENGTH[0].examples,
        min_words=5,
        max_words=20,
        max_tokens=40,
        max_sentences=1,
    ),
    Recipe(
        "thorough",
        "Answer in one full paragraph of three or four sentences.",
        LENGTH[1].examples,
        min_words=40,
        max_words=75,
        max_tokens=110,
    ),
    Recipe(
        "warm",
        "Be warm, friendly and encouraging.",
        (
            (
                SOUP,
                (
                    "What a lovely question! Try a good flask, my friend, and your soup will stay "
                    "nice and cosy until lunch. Enjoy every spoonful!"
                ),
            ),
            (
                LEAVES,
                (
                    "I love that you noticed! Trees let go of their leaves to rest for the winter, "
                    "and they will be so happy to greet you with new ones in spring!"
                ),
            ),
        ),
        min_words=8,
        max_words=45,
        max_tokens=70,
    ),
    Recipe(
        "curt",
        "Be cold, blunt and impatient.",
        (
            (SOUP, "Use a flask. Obviously. It holds heat, and that is all there is to say."),
            (LEAVES, "It is cold. They drop them to save water. Anyone could look that up."),
        ),
        min_words=8,
        max_words=45,
        max_tokens=70,
    ),
)

DATASETS = {"length": LENGTH, "style": STYLE}


def run(
    name: str,
    *,
    base: Path,
    prompts: Path,
    out: Path,
    seed: int,
    keep: int = 2,
    rounds: int = 6,
) -> None:
    """Sample answers to every prompt under every instruction of data set `name`.

    Args:
        name: `length` or `style`.
        base: directory of the base model.
        prompts: text file, one prompt a line.
        out: `.jsonl.gz` to write: `prompt_id, prompt, instruction, response, tokens` a line.
        seed: seed of the sampling; the same seed on the same machine gives the same file.
        keep: answers to keep for every prompt and instruction.
        rounds: how often to try again for prompts that still lack answers.

    Raises:
        UserError: unknown data set, or no prompts.
    """
    if name not in DATASETS:
        raise UserError(f"unknown data set {name!r}", fix=f"use one of {', '.join(DATASETS)}")
    questions = [line.strip() for line in prompts.read_text(encoding="utf-8").splitlines()]
    if not any(questions):
        raise UserError("holds no prompts", where=prompts, fix="write one prompt a line")
    lm = load_base(base)
    rows: list[dict[str, object]] = []
    for number, recipe in enumerate(DATASETS[name]):
        found: dict[int, list[tuple[str, int]]] = {i: [] for i, q in enumerate(questions) if q}
        encoded = {
            i: encode_messages(lm.tokenizer, _conversation(recipe, questions[i])) for i in found
        }
        for attempt in range(rounds):
            short_of = [i for i, kept in found.items() for _ in range(keep - len(kept))]
            if not short_of:
                break
            completions = complete(
                lm.model,
                [len(encoded[i]) for i in short_of],
                partial(_embedded, lm, [encoded[i] for i in short_of]),
                sampling=Sampling(recipe.max_tokens, SAMPLING_TEMPERATURE, SAMPLING_TOP_P),
                eos=int(lm.tokenizer.eos_token_id),
                seed=seed + 1_000_003 * number + 10_007 * attempt,
                batch_size=BATCH_SIZE,
                label=f"{name}/{recipe.instruction}, round {attempt + 1}",
            )
            for i, completion in zip(short_of, completions, strict=True):
                text = lm.tokenizer.decode(completion.ids, skip_special_tokens=True).strip()
                known = {kept for kept, _ in found[i]}
                if completion.finished and recipe.accepts(text) and text not in known:
                    found[i].append((text, len(completion.ids)))
        lacking = sum(not kept for kept in found.values())
        say(
            f"{recipe.instruction}: {sum(map(len, found.values()))} answers, {lacking} prompts none"
        )
        rows += [
            {
                "prompt_id": i,
                "prompt": questions[i],
                "instruction": recipe.instruction,
                "response": text,
                "tokens": tokens,
            }
            for i, kept in found.items()
            for text, tokens in kept
        ]
    rows.sort(key=lambda row: (row["prompt_id"], row["instruction"], row["response"]))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with atomic_path(out) as temporary:
        temporary.write_bytes(gzip.compress(lines.encode("utf-8"), 9, mtime=0))


def _embedded(lm: BaseModel, prompts: list[list[int]], row: int) -> Tensor:
    ids = torch.tensor(prompts[row], device=lm.device)
    return cast(Tensor, lm.model.get_input_embeddings()(ids))


def _conversation(recipe: Recipe, question: str) -> list[dict[str, str]]:
    turns = [{"role": "system", "content": recipe.system}]
    for asked, answered in recipe.examples:
        turns += [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answered},
        ]
    return [*turns, {"role": "user", "content": question}]

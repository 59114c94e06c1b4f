"""Answers to a mix of users, side by side and one by one: `python -m benchmarks.generation --help`.

Every answer is greedy and of the same length, and is checked against the model's own choice before
anything is timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click
import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.agreement import Disagreement
from benchmarks.clock import alternate, ratio, wait_for
from benchmarks.command import common_options, run
from benchmarks.machine import describe
from benchmarks.models import load, vocabulary_of
from benchmarks.page import bars, caption, number, publish, table, times
from benchmarks.variants import personalised
from benchmarks.workload import Shape, draw
from prlhf.infra.progress import say
from prlhf.models.base import BaseModel, Encoder
from prlhf.models.personalized import PersonalizedLM
from prlhf.report.svg import Drawing
from prlhf.sampling import decoding, sample

PROMPTS = Shape("prompts", 60, 1)
NO_END = -1
"""An end-of-sequence token that never comes: every answer has the same length."""

SLACK = {torch.float32: 1e-2, torch.bfloat16: 0.5, torch.float16: 0.1}
"""Nats by which a token may miss the greedy choice: two may be as good as equal."""


@dataclass(frozen=True)
class Requests:
    """Who asks what: embeddings of each prompt behind its user, [length, d]."""

    lm: PersonalizedLM
    prefixes: list[Tensor]
    new_tokens: int


Answering = Callable[[Requests, Sequence[int]], list[list[int]]]


@dataclass(frozen=True)
class Way:
    """A way to answer; slow ones answer fewer requests, and count by the token."""

    key: str
    name: str
    answer: Answering
    requests: int


def batched(size: int) -> Answering:
    """As prlhf answers: `size` requests side by side, with a cache of keys and values."""

    def answer(requests: Requests, which: Sequence[int]) -> list[list[int]]:
        found = sample(
            cast(PreTrainedModel, requests.lm.lm),
            [len(requests.prefixes[i]) for i in which],
            lambda row: requests.prefixes[which[row]],
            config=decoding([NO_END], max_new_tokens=requests.new_tokens, temperature=0.0),
            seed=0,
            batch_size=size,
            label="generate",
        )
        return [completion.ids for completion in found]

    return answer


@torch.no_grad()
def uncached(requests: Requests, which: Sequence[int]) -> list[list[int]]:
    """One by one, reading the whole text again for every token."""
    model = cast(PreTrainedModel, requests.lm.lm)
    embed = model.get_input_embeddings()
    answers = []
    for i in which:
        text, ids = requests.prefixes[i], list[int]()
        for _ in range(requests.new_tokens):
            output = model(inputs_embeds=text.unsqueeze(0), use_cache=False, logits_to_keep=1)
            token = output.logits[0, -1].argmax()
            ids.append(int(token))
            text = torch.cat([text, embed(token.unsqueeze(0))])
        answers.append(ids)
    return answers


def ways(requests: int, few: int) -> list[Way]:
    """Ours first."""
    return [
        Way("batched", f"{requests} side by side, cached", batched(requests), requests),
        Way("cached", "one by one, cached", batched(1), few),
        Way("uncached", "one by one, not cached", uncached, few),
    ]


@torch.no_grad()
def check(way: Way, requests: Requests) -> None:
    """Make sure that every token is the model's own first choice after what precedes it.

    Raises:
        Disagreement: one is not, or an answer has another length.
    """
    lm = requests.lm
    model = cast(PreTrainedModel, lm.lm)
    which = range(way.requests)
    for i, ids in zip(which, way.answer(requests, which), strict=True):
        if len(ids) != requests.new_tokens:
            raise Disagreement(f"{way.name}: {len(ids)} tokens, not {requests.new_tokens}")
        prefix = requests.prefixes[i]
        answer = torch.tensor(ids, device=lm.device)
        text = torch.cat([prefix, model.get_input_embeddings()(answer[:-1])])
        logits = model(inputs_embeds=text.unsqueeze(0), use_cache=False).logits[0]
        logps = logits[len(prefix) - 1 :].float().log_softmax(dim=-1)
        missed = logps.max(dim=-1).values - logps.gather(1, answer.unsqueeze(1))[:, 0]
        if not float(missed.max()) <= SLACK[lm.base.model.dtype]:
            raise Disagreement(
                f"{way.name}: a token is {float(missed.max()):.2g} nats from the greedy choice: "
                "nothing is measured"
            )


def measure(
    base: BaseModel, *, rounds: int, requests: int, few: int, new_tokens: int
) -> dict[str, Any]:
    """All ways to answer.

    Args:
        base: the frozen model.
        rounds: timed passes.
        requests: how many are answered side by side.
        few: how many of them the slow ways answer.
        new_tokens: of each answer.

    Raises:
        Disagreement: a way gives other answers.
    """
    asked = asking(base, requests, new_tokens)
    compared = ways(requests, min(few, requests))
    for way in compared:
        check(way, asked)
    tasks = {way.key: (lambda way=way: _timed(way, asked)) for way in compared}
    seconds = alternate(tasks, rounds, "seconds a token")
    return {
        "machine": describe(base),
        "settings": {
            "rounds": rounds,
            "requests": requests,
            "few": few,
            "new_tokens": new_tokens,
            "prompt": PROMPTS.prompt,
        },
        "ways": [
            {
                "key": way.key,
                "name": way.name,
                "requests": way.requests,
                "seconds_per_token": seconds[way.key],
                "tokens_per_second": 1 / statistics.median(seconds[way.key]),
                "time_ratio": ratio(seconds[way.key], seconds["batched"]),
            }
            for way in compared
        ],
    }


def asking(base: BaseModel, requests: int, new_tokens: int) -> Requests:
    """Prompts of ragged lengths, users in turn."""
    workload = draw(PROMPTS, requests, vocabulary_of(base), seed=0)
    encoder = Encoder(base.chat, *PROMPTS.longest)
    lm = personalised(base, workload, encoder).eval()
    with torch.no_grad():
        prefixes = [lm.prefix(pair.user_index, pair.prompt) for pair in workload.pairs]
    return Requests(lm, prefixes, new_tokens)


def _timed(way: Way, requests: Requests) -> float:
    device = requests.lm.device
    wait_for(device)
    start = time.perf_counter()
    way.answer(requests, range(way.requests))
    wait_for(device)
    return (time.perf_counter() - start) / (way.requests * requests.new_tokens)


def text(result: dict[str, Any]) -> str:
    """The table."""
    options = result["settings"]
    rest = (
        f"Prompts of about {options['prompt']} tokens, answers of {options['new_tokens']}, "
        f"{options['rounds']} rounds. The slower ways answered {options['few']} requests a round."
    )
    rows = [
        [row["name"], number(row["tokens_per_second"]), times(row["time_ratio"])]
        for row in result["ways"]
    ]
    return f"{caption(result['machine'], rest)}\n\n{table(['', 'tokens/s', 'time'], rows)}"


def plot(result: dict[str, Any]) -> Drawing:
    """Tokens a second."""
    found = [
        (row["name"], row["tokens_per_second"], number(row["tokens_per_second"]))
        for row in result["ways"]
    ]
    return bars("Answers, tokens a second (more is better)", [("Mixed users", found)], "tokens/s")


@click.command(context_settings={"show_default": True})
@click.option("--rounds", type=click.IntRange(min=1), default=3, help="Timed passes.")
@click.option("--requests", type=click.IntRange(min=1), default=32, help="Answered side by side.")
@click.option("--few", type=click.IntRange(min=1), default=2, help="Answered by the slow ways.")
@click.option("--new-tokens", type=click.IntRange(min=1), default=32, help="Of each answer.")
@common_options
def main(
    rounds: int,
    requests: int,
    few: int,
    new_tokens: int,
    model: str | None,
    device: str | None,
    dtype: str,
    quick: bool,
    out: Path,
) -> None:
    """Compare batched, cached answers with answers one by one."""
    if quick:
        base = load("random:tiny", device="cpu", dtype="float32")
        result = measure(base, rounds=2, requests=4, few=2, new_tokens=4)
    else:
        base = load(model or "models/base", device=device, dtype=dtype)
        result = measure(base, rounds=rounds, requests=requests, few=few, new_tokens=new_tokens)
    described = text(result)
    say(described)
    if not quick:
        publish(out, "generation", result, described, plot(result))


if __name__ == "__main__":
    run(main)

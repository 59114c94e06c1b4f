"""What a step costs with few users and with many: `python -m benchmarks.users --help`.

The training is prlhf's own; the language model is small by default, so that its cost does not hide
that of the users.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click
import psutil
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from benchmarks.agreement import Disagreement
from benchmarks.clock import alternate, peak_memory, ratio, timed_epoch
from benchmarks.command import common_options, run
from benchmarks.machine import describe
from benchmarks.models import adapted, load, vocabulary_of
from benchmarks.page import bars, caption, number, publish, size, table, times
from benchmarks.variants import OBJECTIVE, items_of, optimizer, settings
from benchmarks.workload import USER_TOKENS
from prlhf.infra.errors import UserError
from prlhf.infra.progress import say
from prlhf.models.base import BaseModel, Encoder
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.user_model import UserModel, build
from prlhf.report.svg import Drawing
from prlhf.training.dataset import PreferenceExample
from prlhf.training.trainer import PDPOTrainer

KINDS: dict[str, dict[str, Any]] = {"cluster": {"clusters": 2}, "individual": {"clusters": 0}}
PROMPT, RESPONSE, BATCH, STEPS = 8, 4, 4, 25
COPIES = 3
"""The table itself and the two moments of its optimiser."""


@dataclass(frozen=True)
class Case:
    """A training run with so many users."""

    kind: str
    users: int
    trainer: PDPOTrainer

    @property
    def table(self) -> nn.Parameter:
        """The per-user table, [users + 1, D]."""
        [found] = cast(PersonalizedLM, self.trainer.model).user_model.sparse_parameters()
        return found

    def in_batches(self) -> set[int]:
        """The users that the run's pairs are of."""
        return {pair.user_index for pair in cast(list[PreferenceExample], items_of(self.trainer))}


def measure(
    base: BaseModel, counts: Sequence[int], *, rounds: int, steps: int = STEPS
) -> dict[str, Any]:
    """Steps and checkpoints of both kinds of user model at each number of users.

    Args:
        base: the frozen model.
        counts: numbers of users, the first of which the others are compared with.
        rounds: timed passes.
        steps: optimiser steps of a pass.

    Raises:
        Disagreement: a step touched users that are not in its batch.
    """
    kinds = []
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as directory:
            fitting, left_out = fit(kind, base.hidden_size, counts)
            cases = [make(base, kind, users, steps, Path(directory)) for users in fitting]
            kinds.append({"kind": kind, "left_out": left_out, "users": _measure(cases, rounds)})
    return {
        "machine": describe(base),
        "settings": {"rounds": rounds, "steps": steps, "batch": BATCH},
        "kinds": kinds,
    }


def fit(kind: str, dim: int, counts: Sequence[int]) -> tuple[list[int], list[dict[str, int]]]:
    """Numbers of users that fit half the free memory side by side, and what the others need."""
    free = psutil.virtual_memory().available / 2
    fitting, left_out = [], []
    for users in counts:
        needed = COPIES * bytes_per_user(kind, dim) * users
        if needed <= free:
            free -= needed
            fitting.append(users)
        else:
            left_out.append({"users": users, "bytes": needed})
    return fitting, left_out


def bytes_per_user(kind: str, dim: int) -> int:
    """Of the table, float32."""
    return 4 * (KINDS[kind]["clusters"] if kind == "cluster" else USER_TOKENS * dim)


def make(base: BaseModel, kind: str, users: int, steps: int, output: Path) -> Case:
    """A trainer whose pairs are of users drawn from all of them."""
    encoder = Encoder(base.chat, PROMPT, RESPONSE)
    lm = PersonalizedLM(base, adapted(base), user_model(kind, users, base.hidden_size), encoder)
    arguments = settings(base.device, BATCH, output / f"{kind}-{users}") | {"learning_rate": 1e-4}
    trainer = PDPOTrainer(
        lm,
        OBJECTIVE,
        optimizer(user_lr=1e-3),
        arguments=TrainingArguments(**arguments),
        train_pairs=pairs_of(users, BATCH * steps, vocabulary_of(base)),
        eval_pairs=[],
    )
    return Case(kind, users, trainer)


def user_model(kind: str, users: int, dim: int) -> UserModel:
    """A user model whose table is zero, and whose shared part is not."""
    config = {"kind": kind, "tokens": USER_TOKENS, "dim": dim, **KINDS[kind]}
    model = build([f"user {i}" for i in range(users)], config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.dense_parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def pairs_of(users: int, count: int, vocabulary: int) -> list[PreferenceExample]:
    """Pairs of equal lengths: only their users differ with the number of users."""
    text = torch.Generator().manual_seed(0)
    who = torch.Generator().manual_seed(users)

    def tokens(length: int) -> list[int]:
        return torch.randint(8, vocabulary, (length,), generator=text).tolist()

    return [
        PreferenceExample(
            user_index=int(torch.randint(1, users + 1, (1,), generator=who)),
            prompt=tokens(PROMPT),
            chosen=tokens(RESPONSE),
            rejected=tokens(RESPONSE),
            ref_chosen=0.0,
            ref_rejected=0.0,
        )
        for _ in range(count)
    ]


def _measure(cases: Sequence[Case], rounds: int) -> list[dict[str, Any]]:
    peaks = {}
    for case in cases:
        timed_epoch(case.trainer)  # makes the optimiser's state
        peaks[case.users], _ = peak_memory(case.trainer)
        only_its_rows(case)
    tasks = {
        str(case.users): (lambda case=case: timed_epoch(case.trainer).seconds) for case in cases
    }
    seconds = alternate(tasks, rounds, f"{cases[0].kind}, users")
    return [_row(case, seconds, peaks[case.users], cases[0]) for case in cases]


def _row(case: Case, seconds: dict[str, list[float]], peak: int, first: Case) -> dict[str, Any]:
    steps = len(items_of(case.trainer)) // BATCH
    own = seconds[str(case.users)]
    return {
        "users": case.users,
        "seconds": own,
        "step_seconds": statistics.median(own) / steps,
        "time_ratio": ratio(own, seconds[str(first.users)]),
        "peak_bytes": peak,
        "table_bytes": case.table.numel() * case.table.element_size(),
        "optimiser_bytes": sum(t.numel() * t.element_size() for t in moments(case)),
        **checkpoint(case),
    }


def only_its_rows(case: Case) -> None:
    """Make sure that training changed the rows of the pairs' users, and no others.

    Raises:
        Disagreement: of the table or of the optimiser's state.
    """
    wanted = case.in_batches()
    for what, tensor in (
        ("table", case.table.detach()),
        *(("optimiser", moment) for moment in moments(case)),
    ):
        touched = set((tensor != 0).any(dim=1).nonzero()[:, 0].tolist())
        if touched != wanted:
            raise Disagreement(
                f"{case.users} users, {case.kind}: {len(touched ^ wanted)} rows of the {what} are "
                "touched that should not be, or are not: nothing is measured"
            )


def moments(case: Case) -> list[Tensor]:
    """The optimiser's state of the table: of each row its steps and both of its moments."""
    optimizer: Any = case.trainer.optimizer
    optimizer = getattr(optimizer, "optimizer", optimizer)
    for part in optimizer.optimizers:
        if case.table in part.state:
            return list(part.state[case.table].values())
    raise Disagreement(f"{case.kind}: the optimiser holds no state for the users")


def checkpoint(case: Case) -> dict[str, Any]:
    """Seconds and bytes of the finished model, and of a checkpoint to resume from."""
    found: dict[str, Any] = {}
    trainer = case.trainer
    with tempfile.TemporaryDirectory() as directory:
        start = time.perf_counter()
        cast(PersonalizedLM, trainer.model).save_pretrained(Path(directory))
        found["model_seconds"] = time.perf_counter() - start
        found["model_bytes"] = _weight(Path(directory))
    with tempfile.TemporaryDirectory() as directory:
        trainer.args.output_dir = directory
        start = time.perf_counter()
        trainer._save_checkpoint(trainer.model, trial=None)
        found["checkpoint_seconds"] = time.perf_counter() - start
        found["checkpoint_bytes"] = _weight(Path(directory))
    return found


def _weight(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def text(result: dict[str, Any]) -> str:
    """A table for each kind of user model."""
    options = result["settings"]
    rest = (
        f"{options['batch']} pairs a step, {options['rounds']} rounds of {options['steps']} steps."
    )
    parts = [caption(result["machine"], rest)]
    header = ["users", "step", "time", "peak memory", "table", "optimiser", "model", "checkpoint"]
    for kind in result["kinds"]:
        rows = [
            [
                f"{row['users']:,}",
                f"{number(1e3 * row['step_seconds'])} ms",
                times(row["time_ratio"]),
                size(row["peak_bytes"]),
                size(row["table_bytes"]),
                size(row["optimiser_bytes"]),
                f"{size(row['model_bytes'])}, {number(row['model_seconds'])} s",
                f"{size(row['checkpoint_bytes'])}, {number(row['checkpoint_seconds'])} s",
            ]
            for row in kind["users"]
        ]
        parts += [f"**Kind `{kind['kind']}`**", table(header, rows)]
        parts += [
            f"{left['users']:,} users: not measured, needs {size(left['bytes'])} of memory."
            for left in kind["left_out"]
        ]
    return "\n\n".join(parts)


def plot(result: dict[str, Any]) -> Drawing:
    """Time of a step by number of users, the fewest being 1."""
    groups = []
    for kind in result["kinds"]:
        medians = [(row["users"], row["time_ratio"]["median"]) for row in kind["users"]]
        found = [(f"{users:,} users", median, number(median)) for users, median in medians]
        groups.append((kind["kind"], found))
    return bars("Time of a training step by number of users", groups, "times")


@click.command(context_settings={"show_default": True})
@click.option("--users", default="10,1000,100000,1000000", help="Numbers of users.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, help="Timed passes.")
@common_options
def main(
    users: str,
    rounds: int,
    model: str | None,
    device: str | None,
    dtype: str,
    quick: bool,
    out: Path,
) -> None:
    """Compare training steps with few users and with many."""
    if quick:
        base = load("random:tiny", device="cpu", dtype="float32")
        result = measure(base, [10, 1000], rounds=2, steps=2)
    else:
        base = load(model or "random:narrow", device=device, dtype=dtype)
        result = measure(base, _numbers(users), rounds=rounds)
    described = text(result)
    say(described)
    if not quick:
        publish(out, "users", result, described, plot(result))


def _numbers(users: str) -> list[int]:
    try:
        found = [int(part) for part in users.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UserError(f"{users!r} are no numbers of users", where="--users", fix="e.g. 10,1000")
    return found


if __name__ == "__main__":
    run(main)

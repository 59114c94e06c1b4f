"""What real bad days do to the pipeline: `python -m benchmarks.chaos`, about an hour on two cores.

Each part makes trials that are seeded by its name and their number. Those that are done are kept
for the code they were done with, so that a campaign that was stopped goes on. The table goes into
docs/reliability.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from benchmarks.chaos import trial
from benchmarks.chaos.files import COMMANDS, FILES
from benchmarks.chaos.kills import KILLED
from benchmarks.chaos.models import MODELS
from benchmarks.chaos.params import PARAMS
from benchmarks.chaos.project import ROOT
from benchmarks.chaos.texts import TEXTS
from benchmarks.chaos.trial import NOT_RUN, REFUSED, USED, Outcome, Part
from benchmarks.command import run
from benchmarks.page import replaced
from prlhf.infra.errors import UserError
from prlhf.infra.io import write_text
from prlhf.infra.progress import Progress, say

PARTS: Final[Mapping[str, Part]] = {
    part.name: part for part in (PARAMS, MODELS, TEXTS, KILLED, COMMANDS, FILES)
}
NAME: Final = "chaos"
"""Of the table's place on the page."""

SHOWN: Final = 20
"""Faults of one part that the page names."""

DIRECTORY = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option("--parts", default=",".join(PARTS), show_default=True, help="Which, by comma.")
@click.option("--number", type=int, help="One trial only; writes no page.")
@click.option("--count", type=int, help="Trials of each part, in the place of its own number.")
@click.option("--minutes", type=float, default=90.0, show_default=True, help="When to stop.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True)
@click.option(
    "--work",
    type=DIRECTORY,
    default=Path(".cache/chaos"),
    show_default=True,
    help="Where outcomes, and the files of faulty trials, are kept.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("docs/reliability.md"),
    show_default=True,
    help="Page whose generated part is replaced.",
)
def main(
    parts: str,
    number: int | None,
    count: int | None,
    minutes: float,
    workers: int,
    work: Path,
    out: Path,
) -> None:
    """Be hard on the pipeline: damaged files and models, hostile texts, interruptions."""
    wanted = parts.split(",")
    for name in wanted:
        if name not in PARTS:
            raise UserError(f"{name} is unknown", where="--parts", fix=f"known: {', '.join(PARTS)}")
    # Trials are small, and as many run side by side as there are processors for them.
    os.environ["OMP_NUM_THREADS"] = "1"
    work = work.resolve()
    if number is not None:
        for name in wanted:
            for outcome in trial.run(PARTS[name], [number], work / "single", 1):
                click.echo(_said(PARTS[name], outcome))
        return
    replaced(out, NAME, "")  # it is too late after an hour
    until = time.monotonic() + 60 * minutes
    work = work / _fingerprint()
    for name in wanted:
        campaign(PARTS[name], count or PARTS[name].count, work, workers, until)
    text = page({name: outcomes(part, work) for name, part in PARTS.items()})
    write_text(out, replaced(out, NAME, text))
    click.echo(text)


def campaign(part: Part, count: int, work: Path, workers: int, until: float) -> None:
    """Make the trials of a part that are not done yet, and keep the outcome of each."""
    done = {outcome.number for outcome in outcomes(part, work)}
    left = [number for number in range(count) if number not in done]
    if not left:
        return
    work.mkdir(parents=True, exist_ok=True)
    found = trial.run(part, left, work, min(workers, len(left)))
    with (
        _kept(part, work).open("a", encoding="utf-8") as kept,
        Progress(len(left), part.name, "trials") as progress,
    ):
        for outcome in found:
            kept.write(json.dumps(asdict(outcome)) + "\n")
            kept.flush()
            progress.advance()
            if outcome.fault:
                say(_said(part, outcome))
            if time.monotonic() > until:
                say(f"{part.name}: the time is over; the same command goes on from here")
                found.close()
                break


def outcomes(part: Part, work: Path) -> list[Outcome]:
    """What is known of a part's trials, in the order that they ended."""
    path = _kept(part, work)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    # A campaign that was killed may have left half a line.
    return [Outcome(**json.loads(line)) for line in lines if line.endswith("}")]


def _kept(part: Part, work: Path) -> Path:
    return work / f"{part.name}.jsonl"


def _said(part: Part, outcome: Outcome) -> str:
    again = f"python -m benchmarks.chaos --parts {part.name} --number {outcome.number}"
    what = f"{outcome.ended}: {outcome.about}: {outcome.detail}"
    return f"{part.name} {outcome.number}: {ascii(what)[1:-1]} ({again})"


def _fingerprint() -> str:
    """A hash of the code that is tried, and of what tries it."""
    digest = hashlib.sha256()
    for folder in ("src", "flows", "benchmarks/chaos"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode())
            digest.update(path.read_bytes())
    for name in ("params.yaml", "dvc.yaml"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()[:12]


def page(found: Mapping[str, Sequence[Outcome]]) -> str:
    """The table, and the faults by name, Markdown."""
    rows = [
        "| Part | Trials | of | Went through | Refused in a line | Not run | Faults |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    faults = []
    for name, several in found.items():
        part, ends = PARTS[name], Counter(each.ended for each in several)
        ran = len(several) - ends[NOT_RUN]
        wrong = [each for each in several if each.fault]
        cells = [part.title, f"{ran:,}", f"{part.count:,}", f"{ends[USED]:,}", f"{ends[REFUSED]:,}"]
        rows.append(f"| {' | '.join([*cells, f'{ends[NOT_RUN]:,}', f'{len(wrong):,}'])} |")
        faults += [_item(part, each) for each in wrong[:SHOWN]]
        if len(wrong) > SHOWN:
            faults.append(f"- {part.name}: {len(wrong) - SHOWN} more")
        faults += sorted(
            {f"- not run: {e.about}: {e.detail}" for e in several if e.ended == NOT_RUN}
        )
    return "\n".join([*rows, *([""] if faults else []), *faults])


def _item(part: Part, outcome: Outcome) -> str:
    text = ascii(f"{outcome.about}: {outcome.detail}")[1:-1].replace("`", "'")[:300]
    return f"- {part.name} {outcome.number}, {outcome.ended}: `{text}`"


if __name__ == "__main__":
    run(main)

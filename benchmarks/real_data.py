"""What personalisation is worth on real people's choices, and whether it hurts anybody.

`python -m benchmarks.real_data` measures each data set with three seeds of the split and writes the
tables into docs/results.md: first the reward model alone on whole data sets, then P-DPO on parts of
them, which takes hours. What is measured already is kept, so a killed run goes on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.command import run
from benchmarks.page import replaced
from benchmarks.real import language_model
from benchmarks.real.figures import percent, summary, verdict
from benchmarks.real.reward import KNOWN, measure
from benchmarks.real.sets import SETS, read_examples
from prlhf.infra.errors import UserError
from prlhf.infra.io import read_json, write_json, write_text
from prlhf.infra.progress import say

PARTS = {"reward": "real-data", "language-model": "real-data-language-model"}
"""What is measured, and the names of the tables' places on the page."""

DIRECTORY = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option(
    "--data",
    type=DIRECTORY,
    envvar="PRLHF_REAL_DATA",
    required=True,
    help="Directory of the data sets, or PRLHF_REAL_DATA.",
)
@click.option(
    "--base",
    type=DIRECTORY,
    default=Path("models/base"),
    show_default=True,
    help="The base model, whose features are learned from.",
)
@click.option("--parts", default=",".join(PARTS), show_default=True, help="What, by comma.")
@click.option("--sets", default=",".join(SETS), show_default=True, help="Data sets, by comma.")
@click.option("--seeds", default=3, show_default=True, help="Splits of each.")
@click.option(
    "--work",
    type=DIRECTORY,
    default=Path(".cache/real-data"),
    show_default=True,
    help="Where features and results are kept.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("docs/results.md"),
    show_default=True,
    help="Page whose generated parts are replaced.",
)
def main(data: Path, base: Path, parts: str, sets: str, seeds: int, work: Path, out: Path) -> None:
    """Measure what personalisation is worth on real people's choices, and write the tables."""
    names = _known(sets, SETS, "--sets")
    wanted = _known(parts, PARTS, "--parts")
    for part in wanted:
        replaced(out, PARTS[part], "")  # it is too late after hours
    for part in wanted:
        if part == "reward":
            text = page(measured(data, base, names, seeds, work))
        else:
            text = language_model.measure(data, names, seeds, work)
        write_text(out, replaced(out, PARTS[part], text))
        click.echo(text)


def _known(listing: str, known: Collection[str], option: str) -> list[str]:
    names = listing.split(",")
    for name in names:
        if name not in known:
            raise UserError(f"{name} is unknown", where=option, fix=f"known: {', '.join(known)}")
    return names


def measured(
    data: Path, base: Path, sets: Sequence[str], seeds: int, work: Path
) -> dict[str, dict[str, Any]]:
    """What the reward model alone is worth on each data set."""
    found = {}
    for name in sets:
        examples = None
        runs = []
        for seed in range(seeds):
            kept = work / "reward" / f"{name}-{seed}.json"
            if not kept.is_file():
                say(f"real_data: {name}, seed {seed}")
                if examples is None:
                    examples = read_examples(data, SETS[name], base, work / "features")
                write_json(kept, measure(SETS[name], examples, seed))
            runs.append(read_json(kept))
        found[name] = summary(runs)
    return found


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables, Markdown."""
    rows = [
        "| Data | People | One model for all | With users | Difference | As mixtures "
        "| Worst tenth | Users shuffled | Gate open | Shuffled | Says |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, figures in found.items():
        means = (f"{100 * figures[key][0]:.1f}" for key in ("shared", "personal"))
        differences = (
            percent(figures[key]) for key in ("gain", "mixed", "worst_tenth", "shuffled")
        )
        gates = (figures[key] for key in ("open", "open_shuffled"))
        says = verdict(figures["gain"])
        cells = [name, str(figures["people"]), *means, *differences, *gates, says]
        rows.append(f"| {' | '.join(cells)} |")
    rows += [
        "",
        f"| Newcomers, by choices known | {' | '.join(map(str, KNOWN))} |",
        f"|---|{'---|' * len(KNOWN)}",
    ]
    for name, figures in found.items():
        shares = (f"{100 * share:.1f}" for share in figures["newcomers"].values())
        rows.append(f"| {name} | {' | '.join(shares)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    run(main)

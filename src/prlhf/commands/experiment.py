"""`prlhf experiment`: the overlays in experiments/, for people and for `dvc exp run`."""

from __future__ import annotations

import os
import sys
from typing import Any

import click


@click.command("list")
def list_experiments() -> None:
    """List the experiments there are."""
    from prlhf import experiments

    found = [experiments.read(name) for name in experiments.names()]
    width = max((len(each.name) for each in found), default=0)
    for each in found:
        # The first sentence; `show` prints them all.
        click.echo(f"{each.name.ljust(width)}  {each.about.partition('. ')[0].rstrip('.')}")


@click.command()
@click.argument("name")
def show(name: str) -> None:
    """Show what NAME changes in params.yaml."""
    from prlhf import experiments
    from prlhf.params.loading import PARAMS_FILE, read_yaml

    experiment = experiments.read(name)
    experiments.check(experiment)
    document = read_yaml(PARAMS_FILE)
    rows = []
    for key, value in (experiment.changes | experiment.grid).items():
        known, now = experiments.current(document, key)
        wanted = _shown(value)
        if key in experiment.grid:
            wanted = f"each of {', '.join(map(_shown, value))}"
        rows.append((key, "-" if not known else _shown(now), wanted))
    click.echo(f"{experiment.about}\n")
    table = [("key", "params.yaml", name), *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for key, now, wanted in table:
        click.echo(f"{key.ljust(widths[0])}  {now.ljust(widths[1])}  {wanted}".rstrip())
    if experiment.grid:
        click.echo(f"\n{len(list(experiment.runs()))} runs")


def _shown(value: Any) -> str:
    from prlhf.experiments import hydra

    return f"[{', '.join(map(hydra, value))}]" if isinstance(value, list) else hydra(value)


@click.command()
@click.argument("name")
def flags(name: str) -> None:
    """Print NAME as flags of `dvc exp run`.

    dvc exp run -n NAME $(prlhf experiment flags NAME)
    """
    from prlhf import experiments

    click.echo(" ".join(experiments.flags(experiments.read(name))))


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def table(options: tuple[str, ...]) -> None:
    """Compare runs by their key figures.

    Runs `dvc exp show` without the columns of files and of reports/metrics.json, and without those
    that are the same in all runs. OPTIONS are passed on to it: --md, --csv, --sort-by COLUMN, ...
    """
    from prlhf.io import read_json

    sections = "|".join(sorted(read_json("reports/metrics.json")))
    hidden = rf"({sections})\.|.*/|params\.yaml$|Executor$"
    arguments = ["dvc", "exp", "show", "--only-changed", "--drop", hidden]
    if not (sys.stdout.isatty() or {"--md", "--csv", "--json"} & set(options)):
        # Without a terminal DVC would squeeze the table into 80 columns.
        arguments.append("--md")
    os.execvp("dvc", [*arguments, *options])

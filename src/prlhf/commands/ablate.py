"""`prlhf ablate`: what each choice is worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prlhf.ablation.definition import Ablation, Run
    from prlhf.ablation.runs import Project

REPORTS = Path("reports/ablations")


class Seeds(click.ParamType[tuple[int, ...]]):
    """Whole numbers with commas between them."""

    name = "seeds"

    def convert(
        self,
        value: str | tuple[int, ...],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
            self.fail("must be whole numbers, each once, as in 7,8,9", param, ctx)
        return tuple(map(int, parts))


@click.command(short_help="Run ablations: tables of what each choice is worth.")
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--list", "listed", is_flag=True, help="List the ablations there are.")
@click.option(
    "--seeds", type=Seeds(), metavar="7,8", help="Run and compare these.  [default: its own]"
)
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs side by side."
)
@click.option("--no-run", is_flag=True, help="Run nothing: the tables of what is there.")
def ablate(
    names: tuple[str, ...],
    listed: bool,
    seeds: tuple[int, ...] | None,
    jobs: int,
    no_run: bool,
) -> None:
    """Run the ablations NAME, and write tables of what each choice is worth.

    An ablation is a file in experiments/ablations/. Each of its settings runs once with each seed,
    as a DVC experiment `ablate-NAME-SETTING-SEED` that starts from the last commit; those that are
    there already do not run again. Tables are printed, and written to reports/ablations/ when no
    run is missing.
    """
    from prlhf.ablation import definition

    if listed:
        _list()
        return
    if not names:
        raise click.UsageError("name an ablation, or see `prlhf ablate --list`")
    wanted = [definition.read(name) for name in dict.fromkeys(names)]
    if seeds:
        wanted = [ablation.with_seeds(seeds) for ablation in wanted]
    _run([(ablation, definition.resolve(ablation)) for ablation in wanted], jobs, no_run)


def _list() -> None:
    from prlhf.ablation import definition

    found = [definition.read(name) for name in definition.names()]
    width = max((len(each.name) for each in found), default=0)
    for each in found:
        settings = ", ".join(setting.name for setting in each.settings)
        runs = len(each.settings) * len(each.seeds)
        click.echo(f"{each.name.ljust(width)}  {each.title}: {settings} ({runs} runs)")


def _run(wanted: Sequence[tuple[Ablation, Sequence[Run]]], jobs: int, no_run: bool) -> None:
    from prlhf.ablation import runs
    from prlhf.ablation.runner import Count, Runner
    from prlhf.errors import UserError, UserErrors
    from prlhf.progress import say

    project = runs.open_project()
    if no_run:
        for ablation, all_runs in wanted:
            _report(project, ablation, all_runs)
        return
    every = [run for _, some in wanted for run in some]
    runs.require_committed(project, every)
    count = Count(len(every))
    failures: list[UserError] = []
    with Runner(project, jobs) as runner:
        for ablation, all_runs in wanted:
            there = runs.find(project, all_runs)
            if there:
                say(f"{ablation.name}: {len(there)} of {len(all_runs)} runs are there already")
            count.begun += len(there)
            missing = [run for run in all_runs if run.experiment not in there]
            failed = runner.make(ablation.name, missing, count)
            failures += failed
            _report(project, ablation, all_runs)
        if not failures:
            runner.clean()
    if failures:
        fix = "the others are kept; run this again for what is missing"
        raise UserErrors(
            [
                UserError(
                    f"{len(failures)} of {len(every)} runs failed", where="prlhf ablate", fix=fix
                )
            ]
        )


def _report(project: Project, ablation: Ablation, all_runs: Sequence[Run]) -> None:
    """Print an ablation's table; write it if it is complete."""
    from prlhf.ablation import figure, page, results, runs
    from prlhf.evaluation.statistics import Bootstrap
    from prlhf.io import write_json, write_text
    from prlhf.params import load
    from prlhf.progress import say

    found = [
        results.read_result(project, each, ablation.method)
        for each in runs.find(project, all_runs).values()
    ]
    if not found:
        say(f"{ablation.name}: no runs to compare")
        return
    params = load()
    bootstrap = Bootstrap(params.seed, params.evaluate.bootstrap, params.evaluate.confidence)
    table = results.tabulate(ablation, all_runs, found, bootstrap)
    click.echo(page.text(table))
    if table.missing:
        say(
            f"{ablation.name}: {len(table.missing)} of {len(all_runs)} runs missing; "
            "nothing is written"
        )
        return
    stem = REPORTS / ablation.name
    write_json(stem.with_suffix(".json"), page.as_json(table))
    write_text(stem.with_suffix(".csv"), page.rows_csv(table))
    write_text(stem.with_suffix(".svg"), figure.draw(table))
    write_text(stem.with_suffix(".md"), page.markdown(table, f"{ablation.name}.svg"))
    say(f"{ablation.name}: written to {stem}.md, .csv, .json and .svg")

"""The commands of `prlhf` besides the stages; each imports what it needs when it runs."""

from __future__ import annotations

import datetime
import difflib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prlhf.infra.errors import UserError
from prlhf.infra.progress import say
from prlhf.stages import STAGES
from prlhf.stages.paths import METRICS, PARAMETERS, REPORTS

if TYPE_CHECKING:
    from prlhf.project.ablation_runs import Project
    from prlhf.project.ablations import Ablation, AblationRun

PATH = click.Path(path_type=Path)
POSITIVE = click.IntRange(min=1)


class Commands(click.Group):
    """Stages in the order they run, then the other commands; `_` and `-` are the same."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name.replace("_", "-"))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            close = difflib.get_close_matches(name, self.commands, n=1)
            fix = f"did you mean {close[0]}?" if close else f"see `{ctx.command_path} --help`"
            raise UserError("no such command", where=f"{ctx.command_path} {name}", fix=fix)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        stages = [stage.command for stage in STAGES if stage.command in self.commands]
        others = [name for name in self.commands if name not in stages]
        for title, names in (("Stages, in the order they run", stages), ("Commands", others)):
            if names:
                with formatter.section(title):
                    formatter.write_dl(
                        [(name, self.commands[name].get_short_help_str(100)) for name in names]
                    )


# -- prlhf experiment ----------------------------------------------------------------------------


@click.group(cls=Commands)
def experiment() -> None:
    """Run other settings by name: the overlays in experiments/."""


@experiment.command("list")
def list_experiments() -> None:
    """List the experiments there are."""
    from prlhf.project import experiments

    found = [experiments.read(name) for name in experiments.names()]
    # The first sentence; `show` prints them all.
    _print_columns([(each.name, each.about.partition(". ")[0].rstrip(".")) for each in found])


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())


@experiment.command("show")
@click.argument("name")
def show_experiment(name: str) -> None:
    """Show what NAME changes in params.yaml."""
    from prlhf.params.loading import read_yaml
    from prlhf.project import experiments

    found = experiments.read(name)
    experiments.check(found)
    document = read_yaml(PARAMETERS)
    table = [("key", "params.yaml", name)]
    for key, value in (found.changes | found.grid).items():
        known, now = experiments.current(document, key)
        wanted = f"each of {', '.join(map(_shown, value))}" if key in found.grid else _shown(value)
        table.append((key, _shown(now) if known else "-", wanted))
    click.echo(f"{found.about}\n")
    _print_columns(table)
    if found.grid:
        click.echo(f"\n{len(list(found.runs()))} runs")


def _shown(value: Any) -> str:
    from prlhf.project.experiments import hydra

    return f"[{', '.join(map(hydra, value))}]" if isinstance(value, list) else hydra(value)


@experiment.command("flags")
@click.argument("name")
def print_flags(name: str) -> None:
    """Print NAME as flags of `dvc exp run`.

    dvc exp run -n NAME $(prlhf experiment flags NAME)
    """
    from prlhf.project import experiments

    click.echo(" ".join(experiments.flags(experiments.read(name))))


@experiment.command("table", context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def compare_runs(options: tuple[str, ...]) -> None:
    """Compare runs by their key figures.

    Runs `dvc exp show` without the columns of files and of reports/metrics.json, and without those
    that are the same in all runs. OPTIONS are passed on to it: --md, --csv, --sort-by COLUMN, ...
    """
    from prlhf.infra.io import read_json

    sections = "|".join(sorted(read_json(METRICS)))
    hidden = rf"({sections})\.|.*/|params\.yaml$|Executor$"
    arguments = ["dvc", "exp", "show", "--only-changed", "--drop", hidden]
    if not (sys.stdout.isatty() or {"--md", "--csv", "--json"} & set(options)):
        # Without a terminal DVC would squeeze the table into 80 columns.
        arguments.append("--md")
    os.execvp("dvc", [*arguments, *options])


# -- prlhf ablate --------------------------------------------------------------------------------


def _parse_seeds(
    context: click.Context, option: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise click.BadParameter("must be whole numbers, each once, as in 7,8,9")
    return tuple(map(int, parts))


@click.command(short_help="Run ablations: tables of what each choice is worth.")
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--list", "listed", is_flag=True, help="List the ablations there are.")
@click.option(
    "--seeds",
    callback=_parse_seeds,
    metavar="7,8",
    help="Run and compare these.  [default: its own]",
)
@click.option("--jobs", type=POSITIVE, default=1, show_default=True, help="Runs side by side.")
@click.option("--no-run", is_flag=True, help="Run nothing: the tables of what is there.")
def ablate(
    names: tuple[str, ...], listed: bool, seeds: tuple[int, ...] | None, jobs: int, no_run: bool
) -> None:
    """Run the ablations NAME, and write tables of what each choice is worth.

    An ablation is a file in experiments/ablations/. Each of its settings runs once with each seed,
    as a DVC experiment `ablate-NAME-SETTING-SEED` that starts from the last commit; those that are
    there already do not run again. Tables are printed, and written to reports/ablations/ when no
    run is missing.
    """
    from prlhf.project import ablation_runs, ablations

    if listed:
        rows = []
        for each in map(ablations.read, ablations.names()):
            settings = ", ".join(setting.name for setting in each.settings)
            runs = len(each.settings) * len({*each.seeds, *each.fresh})
            rows.append((each.name, f"{each.title}: {settings} ({runs} runs)"))
        _print_columns(rows)
        return
    if not names:
        raise click.UsageError("name an ablation, or see `prlhf ablate --list`")
    read = [ablations.read(name, seeds=seeds) for name in dict.fromkeys(names)]
    wanted = [(ablation, ablations.resolve(ablation)) for ablation in read]
    project = ablation_runs.project_to_run()
    if no_run:
        for ablation, all_runs in wanted:
            _report_ablation(project, ablation, all_runs)
    else:
        ablation_runs.make_missing(project, wanted, jobs, _report_ablation)


def _report_ablation(project: Project, ablation: Ablation, all_runs: Sequence[AblationRun]) -> None:
    """Print an ablation's table; write it if it is complete."""
    from prlhf.infra.io import write_json, write_text
    from prlhf.metrics.intervals import Intervals
    from prlhf.params import load
    from prlhf.project import ablation_page, ablation_results, ablation_runs

    found = [
        ablation_results.read_result(project, each, ablation.method)
        for each in ablation_runs.find(project, all_runs).values()
    ]
    if not found:
        say(f"{ablation.name}: no runs to compare")
        return
    intervals = Intervals(load().evaluate.confidence)
    table = ablation_results.tabulate(ablation, all_runs, found, intervals)
    click.echo(ablation_page.text(table))
    if table.missing:
        missing = f"{len(table.missing)} of {len(all_runs)} runs missing"
        say(f"{ablation.name}: {missing}; nothing is written")
        return
    stem = REPORTS / "ablations" / ablation.name
    write_json(stem.with_suffix(".json"), ablation_page.as_json(table))
    write_text(stem.with_suffix(".csv"), ablation_page.rows_csv(table))
    write_text(stem.with_suffix(".svg"), ablation_page.draw(table))
    write_text(stem.with_suffix(".md"), ablation_page.markdown(table, f"{ablation.name}.svg"))
    say(f"{ablation.name}: written to {stem}.md, .csv, .json and .svg")


# -- prlhf params --------------------------------------------------------------------------------


@click.group("params", cls=Commands)
def params_file() -> None:
    """Check and compare params.yaml; write its reference."""


@params_file.command("diff")
@click.argument("old", default="HEAD")
@click.argument("new", default="workspace")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every figure that differs.")
@click.option("--all", "every", is_flag=True, help="Show every figure that differs.")
def diff_params(old: str, new: str, as_json: bool, every: bool) -> None:
    """Compare parameters, and what follows from their change.

    OLD and NEW are Git revisions; by default HEAD is compared with the files as they are. Prints
    Markdown: the parameters, the stages that they make stale, code and data that do so as well,
    figures before and after, and what a reviewer should not miss.
    """
    from prlhf.project import compare, review_page

    found = compare.compare(old, new)
    if as_json:
        click.echo(_json(compare.as_json(found)))
    else:
        click.echo(review_page.render(found, every_metric=every).rstrip())


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


@params_file.command("check")
@click.argument("path", type=PATH, default=PARAMETERS)
def check_params(path: Path) -> None:
    """Check params.yaml (or PATH): every fault with its line."""
    from prlhf.params import load

    load(path)
    click.echo(f"{path}: good")


@params_file.command("docs")
@click.option("--check", is_flag=True, help="Write nothing; fail if one is out of date.")
def write_reference(check: bool) -> None:
    """Write docs/parameters.md and the comments of params.yaml."""
    from prlhf.infra.io import write_text
    from prlhf.params import Params
    from prlhf.params.loading import read_yaml
    from prlhf.params.section import commented, reference_page, same

    read_yaml(PARAMETERS)  # says what is wrong with it
    stages = read_yaml(Path("dvc.yaml"))["stages"]
    used = {name: stage.get("params", []) for name, stage in stages.items()}
    wanted = {
        PARAMETERS: commented(PARAMETERS.read_text(encoding="utf-8"), Params),
        Path("docs/parameters.md"): reference_page(Params, used),
    }
    for path, text in wanted.items():
        current = path.read_text(encoding="utf-8") if path.exists() else ""
        if same(text, current):
            click.echo(f"{path}: up to date")
        elif check:
            raise UserError("out of date", where=path, fix="run `prlhf params docs`")
        else:
            write_text(path, text)
            click.echo(f"{path}: written")


# -- prlhf lock ----------------------------------------------------------------------------------


@click.group(cls=Commands)
def lock() -> None:
    """Check dvc.lock against parameters, code and data."""


@lock.command("check")
def check_lock() -> None:
    """Check that dvc.lock records the pipeline as it is.

    Needs no cache and no results: a fresh clone will do. Fails with a line for every stage whose
    command, parameters, code or data are not those that dvc.lock has.
    """
    from prlhf.project import lock as recorded

    click.echo(f"dvc.lock: records all {recorded.check()} stages as they are")


# -- prlhf data ----------------------------------------------------------------------------------


@click.group(cls=Commands)
def data() -> None:
    """Add feedback; see what changed between two versions of the data."""


@data.command("add", short_help="Add the new rows of files of feedback as a dated batch.")
@click.argument("inbox", type=PATH)
@click.option(
    "--store",
    type=PATH,
    default="data/feedback",
    show_default=True,
    help="Directory of the batches.",
)
def add_feedback(inbox: Path, store: Path) -> None:
    """Add the new rows of INBOX, a file or a directory of files, as a dated batch.

    Rows that the store has already are left out, so the same inbox can be given again. DVC then
    tracks the store (`dvc add`). If params.yaml reads the store, rows that its data.columns do not
    fit are refused.
    """
    from prlhf.params import load
    from prlhf.project import feedback

    params = load().data if PARAMETERS.exists() else None
    reads = params is not None and params.source == "local" and Path(params.path) == store
    columns = params.columns.model_dump() if params is not None and reads else None
    done = feedback.append(inbox, store, today=datetime.date.today(), columns=columns)
    if store.is_dir():
        feedback.track(store)
    known = f" ({done.known} known)" if done.known else ""
    if done.path is None:
        click.echo(f"data: nothing new{known}")
        return
    click.echo(f"data: {done.rows} new rows{known} -> {done.path}")
    tracked = f"{store}.dvc {store.parent / '.gitignore'}"
    click.echo(f"data: keep this version: git add {tracked} && git commit")
    if params is not None and not reads:
        wanted = f"set data.source: local, data.path: {store}"
        click.echo(f"data: params.yaml does not read it yet: {wanted}")


@data.command("log", short_help="Show what changed between two versions of the data.")
@click.argument("rev_a", required=False)
@click.argument("rev_b", required=False)
@click.option("--json", "as_json", is_flag=True, help="For programs: JSON, with all users.")
@click.option(
    "-n", "--number", type=POSITIVE, default=20, show_default=True, help="Versions in the history."
)
def show_changes(rev_a: str | None, rev_b: str | None, as_json: bool, number: int) -> None:
    """Show what changed in the data from REV_A to REV_B (the workspace, unless given).

    A revision is whatever Git takes for one, or `workspace`. Without one, list the commits that
    changed the data, newest first. Only data in DVC's cache are looked at; nothing is fetched.
    """
    from dataclasses import asdict

    from prlhf.project import data_changes

    if rev_a is None:
        history = data_changes.history(number)
        click.echo(_json(asdict(history)) if as_json else data_changes.history_text(history))
    else:
        found = data_changes.compare(rev_a, rev_b or "workspace")
        click.echo(_json(asdict(found)) if as_json else data_changes.changes_text(found))

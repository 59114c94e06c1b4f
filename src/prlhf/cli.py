"""`prlhf`: the pipeline's stages and a few commands around them.

Nothing heavy is imported here: a command imports its stage when it runs.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from prlhf import launch, signals
from prlhf.commands import ablate as ablate_commands
from prlhf.commands import data as data_commands
from prlhf.commands import experiment as experiment_commands
from prlhf.commands import join as join_commands
from prlhf.commands import params as params_commands
from prlhf.errors import UserError
from prlhf.failures import EXIT_INTERRUPTED, EXIT_PIPE, EXIT_TERMINATED, EXIT_USER, user_lines
from prlhf.progress import say
from prlhf.stage_list import STAGES, Stage

if TYPE_CHECKING:
    from prlhf.params import Params

METRICS = Path("reports/metrics.json")
REPORT = Path("reports/report.html")
REFERENCE = Path("docs/parameters.md")

# Set before any library is imported: no telemetry, no warnings about forks, no bars of others; and
# Arrow gives memory back instead of keeping it, a tenth of the most that a million pairs take. A
# value that the user has set stays.
ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MIMALLOC_PURGE_DELAY": "0",  # what Arrow allocates with
    "TOKENIZERS_PARALLELISM": "false",
}
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


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


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda context, _, wanted: _show_version(context) if wanted else None,
    help="Show the version and exit.",
)
def app() -> None:
    """Personalise a language model with its users' conflicting preferences (P-DPO).

    `dvc repro` runs all stages that are out of date; each command below runs one of them in the
    current directory, with the parameters in params.yaml.
    """


def _show_version(context: click.Context) -> None:
    from prlhf import __version__

    click.echo(f"prlhf {__version__}")
    context.exit()


def run_stage(stage: Stage, method: str | None = None) -> None:
    """Run one stage with the parameters it declares, and no others.

    Raises:
        UserError: params.yaml has faults, the method is unknown, or the stage finds a mistake that
            the user can mend.
    """
    from prlhf.params import load

    params = load()
    if method is not None:
        _check_method(params, method, stage)
    if not _may_use_network(stage, params):
        for name, value in OFFLINE.items():
            os.environ.setdefault(name, value)
    if stage.shared and launch.is_process():
        with launch.process(params.launch.strategy):
            _run_here(stage, params, method)
        return
    label = f"{stage.name}@{method}" if method else stage.name
    started = time.monotonic()
    say(f"{label}: started")
    if stage.shared and params.launch.processes * params.launch.machines > 1:
        launch.run(label, stage.arguments(method), params.launch)
    else:
        _run_here(stage, params, method)
    say(f"{label}: done in {time.monotonic() - started:.1f} s")


def _run_here(stage: Stage, params: Params, method: str | None) -> None:
    module = importlib.import_module(f"prlhf.stages.{stage.module}")
    module.run(**stage_arguments(module, params, method))


def stage_arguments(module: ModuleType, params: Params, method: str | None) -> dict[str, Any]:
    """The keyword arguments of a stage's `run`: the sections named in the module's `PARAMS`.

    `validate` is passed as `rules`, `methods.<m>` as `method`, a key of another section by its own
    name; stages that run once per method are also told its `name`.
    """
    arguments: dict[str, Any] = {} if method is None else {"name": method}
    for key in module.PARAMS:
        section, _, rest = key.partition(".")
        if section == "validate":
            arguments["rules"] = params.validate_
        elif section == "methods" and rest:
            arguments["method"] = params.methods[str(method)]
        elif rest:
            arguments[rest] = getattr(getattr(params, section), rest)
        else:
            arguments[section] = getattr(params, section)
    return arguments


def _check_method(params: Params, method: str, stage: Stage) -> None:
    untuned = ["base", "prompted"] if stage.methods == "all" else []
    known = [*untuned, *params.methods]
    if method not in known:
        raise UserError(
            f"unknown method {method}",
            where=f"prlhf {stage.command} --method",
            fix=f"params.yaml has {', '.join(known)}",
        )


def _may_use_network(stage: Stage, params: Params) -> bool:
    return stage.name == "base_model" or (stage.name == "ingest" and params.data.remote)


def _stage_command(stage: Stage) -> click.Command:
    options: list[click.Parameter] = []
    if stage.methods:
        what = "a key of methods in params.yaml"
        what += ", or base or prompted" * (stage.methods == "all")
        options.append(
            click.Option(
                ["--method"], required=True, metavar="METHOD", help=f"Which model: {what}."
            )
        )

    def callback(method: str | None = None) -> None:
        run_stage(stage, method)

    return click.Command(
        stage.command,
        params=options,
        callback=callback,
        short_help=stage.summary,
        help=f"{stage.summary}\n\n{stage.detail}",
    )


for _stage in STAGES:
    app.add_command(_stage_command(_stage))


app.add_command(join_commands.join)


@app.command()
def summary() -> None:
    """Print the result table and where the report is."""
    from prlhf.evaluation.summary import render
    from prlhf.io import read_json

    click.echo(render(read_json(METRICS)).rstrip())
    if REPORT.exists():
        click.echo(f"\nReport: {REPORT.resolve()}")


@app.group(cls=Commands, name="experiment")
def experiment_group() -> None:
    """Run other settings by name: the overlays in experiments/."""


for _command in (
    experiment_commands.list_experiments,
    experiment_commands.show,
    experiment_commands.flags,
    experiment_commands.table,
):
    experiment_group.add_command(_command)


app.add_command(ablate_commands.ablate)


@app.group(cls=Commands, name="params")
def params_group() -> None:
    """Check and compare params.yaml; write its reference."""


@app.group(cls=Commands, name="lock")
def lock_group() -> None:
    """Check dvc.lock against parameters, code and data."""


params_group.add_command(params_commands.diff)
lock_group.add_command(params_commands.check_lock)


@params_group.command("check")
@click.argument("path", type=click.Path(path_type=Path), default=Path("params.yaml"))
def check_params(path: Path) -> None:
    """Check params.yaml (or PATH): every fault with its line."""
    from prlhf.params import load

    load(path)
    click.echo(f"{path}: good")


@params_group.command("docs")
@click.option("--check", is_flag=True, help="Write nothing; fail if the reference is out of date.")
def write_reference(check: bool) -> None:
    """Write docs/parameters.md from the typed parameters."""
    from prlhf.io import write_text
    from prlhf.params_docs import render

    text = render()
    current = REFERENCE.read_text(encoding="utf-8") if REFERENCE.exists() else None
    if text == current:
        click.echo(f"{REFERENCE}: up to date")
    elif check:
        raise UserError("out of date", where=REFERENCE, fix="run `prlhf params docs`")
    else:
        write_text(REFERENCE, text)
        click.echo(f"{REFERENCE}: written")


@app.group(cls=Commands, name="data")
def data_group() -> None:
    """Add feedback; see what changed between two versions of the data."""


data_group.add_command(data_commands.add)
data_group.add_command(data_commands.log)


@app.command()
@click.argument("dataset")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="File to write: gzipped JSON lines.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sampling.")
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    default=Path("models/base"),
    show_default=True,
    help="Directory of the base model.",
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    help="One prompt a line.  [default: data/seed/DATASET/prompts.txt]",
)
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Answers per prompt and instruction.",
)
def simulate(
    dataset: str, out: Path, seed: int, base: Path, prompts: Path | None, keep: int
) -> None:
    """Sample the responses of a built-in data set anew.

    DATASET is length or style. The base model answers every prompt under opposed instructions.
    """
    from prlhf.simulate import run

    source = prompts or Path("data/seed") / dataset / "prompts.txt"
    run(dataset, base=base, prompts=source, out=out, seed=seed, keep=keep)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `prlhf` command: exits with the command's status."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():
        # Bars that libraries draw by themselves would fill a log file.
        os.environ.setdefault("TQDM_DISABLE", "1")
    signals.handle()
    sys.exit(execute(sys.argv[1:] if arguments is None else arguments))


def execute(
    arguments: Sequence[str], command: click.Command = app, name: str | None = "prlhf"
) -> int:
    """Run a command line and return its exit status; faults of the user's become plain lines.

    Args:
        arguments: What follows the command's name.
        command: What is to run.
        name: What it is called; None for how it was started.
    """
    try:
        command.main(args=list(arguments), prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return EXIT_USER
    except (KeyboardInterrupt, click.Abort) as error:
        terminated = signals.Terminated in {type(error), type(error.__cause__)}
        if not launch.is_process():  # else the launcher says it, once
            say("error: terminated" if terminated else "error: interrupted")
        return EXIT_TERMINATED if terminated else EXIT_INTERRUPTED
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else name or command.name
        problem = error.format_message().rstrip(".")
        say(f"error: {path}: {problem} (see `{path} --help`)")
        return EXIT_USER
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted. Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except Exception as error:
        lines = user_lines(error)
        if not lines:
            raise
        for line in lines:
            say(f"error: {line}")
        return EXIT_USER
    return 0

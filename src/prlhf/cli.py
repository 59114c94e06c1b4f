"""`prlhf`: the pipeline's stages and a few commands around them.

Nothing heavy is imported here: a command imports its stage when it runs.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from prlhf import commands, launch
from prlhf.commands import PATH, POSITIVE, Commands
from prlhf.infra import signals, tracking
from prlhf.infra.errors import (
    EXIT_INTERRUPTED,
    EXIT_PIPE,
    EXIT_TERMINATED,
    EXIT_USER,
    UserError,
    user_lines,
)
from prlhf.infra.io import require_place
from prlhf.infra.progress import quiet_libraries, say
from prlhf.stages import STAGES, Stage
from prlhf.stages.paths import FOLDERS

if TYPE_CHECKING:
    from prlhf.params import Params

# Set before any library is imported, unless the user has set them: no telemetry, no warnings about
# forks, no progress bars of libraries.
ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Arrow's allocator gives memory back at once: a tenth of the peak for a million pairs.
    "MIMALLOC_PURGE_DELAY": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from prlhf import __version__

        click.echo(f"prlhf {__version__}")
        context.exit()


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def app() -> None:
    """Personalise a language model with its users' conflicting preferences (P-DPO).

    `dvc repro` runs all stages that are out of date; each command below runs one of them in the
    current directory, with the parameters in params.yaml.
    """


def run_stage(stage: Stage, method: str | None = None) -> None:
    """Run one stage, in this process or in several, with the parameters it declares.

    Raises:
        UserError: params.yaml has faults, the method is unknown, or the stage finds a mistake of
            the user's.
    """
    from prlhf.params import load

    params = load()
    known = [*(["base", "prompted"] if stage.methods == "all" else []), *params.methods]
    if method is not None and method not in known:
        raise UserError(
            f"unknown method {method}",
            where=f"prlhf {stage.command} --method",
            fix=f"params.yaml has {', '.join(known)}",
        )
    fetches = stage.name == "base_model" or (stage.name == "ingest" and params.data.remote)
    if not fetches:
        for name, value in OFFLINE.items():
            os.environ.setdefault(name, value)
    if stage.shared and launch.is_process():
        with launch.process(params.launch.strategy):
            _run_here(stage, params, method)
        return
    if "DVC_STAGE" in os.environ:
        require_place(Path.cwd(), FOLDERS)
    label = f"{stage.name}@{method}" if method else stage.name
    started = time.monotonic()
    say(f"{label}: started")
    if stage.shared and params.launch.processes * params.launch.machines > 1:
        launch.run(label, stage.arguments(method), params.launch)
    else:
        _run_here(stage, params, method)
    say(f"{label}: done in {time.monotonic() - started:.1f} s")


def _run_here(stage: Stage, params: Params, method: str | None) -> None:
    module = importlib.import_module(f"prlhf.stages.{stage.name}")
    with tracking.reporting_to(params.track.report_to, params.track.project):
        module.run(**stage_arguments(module, params, method))


def stage_arguments(module: ModuleType, params: Params, method: str | None) -> dict[str, Any]:
    """The keyword arguments of a stage's `run`: the sections named in the module's `PARAMS`.

    `validate` is passed as `rules`, `methods.<m>` as `method`, `compare.all` as `compared`, a key
    of another section by its own name; stages that run once per method are also told its `name`.
    """
    arguments: dict[str, Any] = {} if method is None else {"name": method}
    for key in module.PARAMS:
        section, _, rest = key.partition(".")
        if section == "validate":
            arguments["rules"] = params.validate_
        elif section == "methods" and rest:
            arguments["method"] = params.methods[str(method)]
        elif key == "compare.all":
            arguments["compared"] = params.compare.all
        elif rest:
            arguments[rest] = getattr(getattr(params, section), rest)
        else:
            arguments[section] = getattr(params, section)
    return arguments


def _stage_command(stage: Stage) -> click.Command:
    untuned = ", or base or prompted" if stage.methods == "all" else ""
    about = f"Which model: a key of methods in params.yaml{untuned}."
    option = click.Option(["--method"], required=True, metavar="METHOD", help=about)
    return click.Command(
        stage.command,
        params=[option] if stage.methods else [],
        callback=partial(run_stage, stage),
        short_help=stage.summary,
        help=f"{stage.summary}\n\n{stage.detail}",
    )


@click.command()
@click.option(
    "--patience",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="End after so long without work; by default never.",
)
def join(patience: float | None) -> None:
    """Take part in the stages that machine 0 runs.

    For launch.machines above 1: run this on every machine but the first, in the project directory
    that all of them share, with NODE_RANK (1, 2, ...) and MASTER_ADDR (of machine 0) in the
    environment. Machine 0 runs `dvc repro`, or the Prefect flow, as ever.
    """
    from prlhf.params import load

    params = load()
    if params.launch.machines == 1:
        raise UserError("there is one machine only", where="params.yaml: launch.machines")
    place = launch.Place.of(os.environ, params.launch.machines)
    if place.machine == 0:
        problem = "this is machine 0, which runs the stages"
        raise UserError(problem, where="NODE_RANK", fix="join on the others")
    launch.follow(place, patience)
    say("join: nothing more to do")


@click.command()
def summary() -> None:
    """Print the result table and where the report is."""
    from prlhf.infra.io import read_json
    from prlhf.report import summary as text
    from prlhf.stages.paths import EVALUATION, METRICS, REPORT

    click.echo(text.render(read_json(METRICS), read_json(EVALUATION)).rstrip())
    if REPORT.exists():
        click.echo(f"\nReport: {REPORT.resolve()}")


@click.command()
@click.argument("dataset")
@click.option("--out", type=PATH, required=True, help="File to write: gzipped JSON lines.")
@click.option("--seed", default=0, show_default=True, help="Seed of the sampling.")
@click.option(
    "--base",
    type=PATH,
    default="models/base",
    show_default=True,
    help="Directory of the base model.",
)
@click.option(
    "--prompts", type=PATH, help="One prompt a line.  [default: data/seed/DATASET/prompts.txt]"
)
@click.option(
    "--keep",
    type=POSITIVE,
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
    from prlhf import simulate as sampling

    source = prompts or Path("data/seed") / dataset / "prompts.txt"
    sampling.run(dataset, base=base, prompts=source, out=out, seed=seed, keep=keep)


@click.command(short_help="Send a trained model to the Hugging Face hub.")
@click.argument("model")
@click.option("--repo", required=True, metavar="ORG/NAME", help="Where it goes; made if missing.")
@click.option("--public/--private", help="Who may see a new repository.  [default: private]")
@click.option("--revision", metavar="BRANCH", help="Branch to send it to.  [default: main]")
@click.option("--with-user-ids", is_flag=True, help="Send users' ids and embeddings as well.")
@click.option("--dry-run", is_flag=True, help="Send nothing: show what would be sent.")
def push(
    model: str, repo: str, public: bool, revision: str | None, with_user_ids: bool, dry_run: bool
) -> None:
    """Send MODEL (a method, or reward_METHOD) to a repository on the Hugging Face hub.

    The repository gets the content of models/MODEL, with the figures of the last evaluation in its
    model card. Users' ids are personal data, and so is what was learned of each user: without
    --with-user-ids both stay here, and what is sent serves everybody as the generic user.
    """
    from prlhf.project import push as hub

    hub.require_repo(repo)
    with hub.parcel(model, repo, user_ids=with_user_ids) as (directory, note):
        if note:
            say(f"push: {note}")
        if dry_run:
            for path in sorted(path for path in directory.rglob("*") if path.is_file()):
                click.echo(f"{path.stat().st_size:>12,}  {path.relative_to(directory).as_posix()}")
            click.echo(f"\n{(directory / 'README.md').read_text(encoding='utf-8').rstrip()}")
            return
        url = hub.send(directory, repo, public=public, revision=revision)
    click.echo(f"push: {model} is at {url}")


for _command in (
    *map(_stage_command, STAGES),
    join,
    summary,
    commands.experiment,
    commands.ablate,
    commands.params_file,
    commands.lock,
    commands.data,
    push,
    simulate,
):
    app.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `prlhf` command: exits with the command's status."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():
        # Bars that libraries draw by themselves would fill a log file.
        os.environ.setdefault("TQDM_DISABLE", "1")
    quiet_libraries()
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
        if not (lines := user_lines(error)):
            raise
        for line in lines:
            say(f"error: {line}")
        return EXIT_USER
    return 0

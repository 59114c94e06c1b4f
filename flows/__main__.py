"""`python -m flows`: run a flow here, with the Prefect server that is configured, or with none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from flows import server
from prlhf.infra import signals
from prlhf.infra.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, EXIT_USER, UserError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

EXIT_FAILED = 1
_ENDED = "every process of the run has ended; the next run goes on from here"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def app() -> None:
    """Run a flow in the current directory, the root of the project."""


@app.command()
@click.argument("targets", nargs=-1, metavar="[STAGE]...")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Another parameter.")
@click.option("--experiment", metavar="NAME", help="The overlay experiments/NAME.yaml.")
@click.option("--parallel", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--timeout", type=float, metavar="SECONDS", help="For stages without one.")
def run(
    targets: tuple[str, ...],
    sets: tuple[str, ...],
    experiment: str | None,
    parallel: int,
    timeout: float | None,
) -> None:
    """Bring the pipeline, or some STAGEs with what they need, up to date."""
    from prlhf.params.loading import parse_override

    overrides = dict(map(parse_override, sets))
    with server.reached():
        from flows.pipeline import pipeline

        _finish(
            lambda: pipeline(
                targets=list(targets) or None,
                overrides=overrides or None,
                experiment=experiment,
                parallel=parallel,
                timeout=timeout,
                return_state=True,
            )
        )


@app.command("new-feedback")
@click.option("--inbox", default="data/inbox", show_default=True, help="Where new files arrive.")
@click.option("--store", default="data/feedback", show_default=True, help="Where they are kept.")
def new_feedback(inbox: str, store: str) -> None:
    """Take new feedback into the store; run the pipeline if there is any."""
    with server.reached():
        from flows.new_feedback import new_feedback

        _finish(lambda: new_feedback(inbox=inbox, store=store, return_state=True))


def _finish(call: Callable[[], State[Any]]) -> None:
    state = call()
    if not state.is_completed():
        message = state.message or str(state.name)
        raise click.ClickException(message.removeprefix("error: "))
    click.echo(state.message)


def main() -> int:
    """Run a command line and return its exit status."""
    signals.handle(signals.TerminatedExit)
    try:
        app.main(prog_name="python -m flows", standalone_mode=False)
    except (KeyboardInterrupt, click.Abort):
        click.echo(f"error: interrupted: {_ENDED}", err=True)
        return EXIT_INTERRUPTED
    except SystemExit as exit_:
        if exit_.code == EXIT_TERMINATED:
            click.echo(f"error: terminated: {_ENDED}", err=True)
        return int(exit_.code or 0)
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()}", err=True)
        return EXIT_USER if isinstance(error, click.UsageError) else EXIT_FAILED
    except UserError as error:
        for line in error.lines():
            click.echo(f"error: {line}", err=True)
        return EXIT_USER
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.exit(status)

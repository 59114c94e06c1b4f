"""What the benchmarks' command lines share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from prlhf.cli import execute

PAGE = Path("docs/benchmarks.md")


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every benchmark has."""
    options = (
        click.option(
            "--model",
            help="Model directory, or random:SHAPE for random weights of a real shape."
            "  [default: models/base; users: random:narrow]",
        ),
        click.option("--device", help="As torch names it.  [default: cuda if there is one]"),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            default="auto",
            help="Of the weights; auto is bfloat16 on CUDA, else float32.",
        ),
        click.option(
            "--quick", is_flag=True, help="A toy run on a tiny random model; writes no file."
        ),
        click.option(
            "--out",
            type=click.Path(path_type=Path, dir_okay=False),
            default=PAGE,
            help="Page whose generated part is replaced; data and plot go beside it.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def run(command: click.Command) -> None:
    """Run a command line; faults of the user's become plain lines."""
    # The profiler would report each of its starts and stops.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    sys.exit(execute(sys.argv[1:], command, None))

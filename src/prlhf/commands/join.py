"""`prlhf join`: a machine that takes part in what another one runs."""

from __future__ import annotations

import os

import click

from prlhf.errors import UserError


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
    from prlhf import launch
    from prlhf.machines import Place
    from prlhf.params import load
    from prlhf.progress import say

    params = load()
    if params.launch.machines == 1:
        raise UserError("there is one machine only", where="params.yaml: launch.machines")
    place = Place.of(os.environ, params.launch.machines)
    if place.machine == 0:
        raise UserError(
            "this is machine 0, which runs the stages",
            where="NODE_RANK",
            fix="join on the others",
        )
    launch.join(place, patience)
    say("join: nothing more to do")

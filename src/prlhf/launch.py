"""Starting the processes of a stage, on one machine or several, and saying what became of them.

The command that was called becomes the launcher: `torch`'s elastic agent starts the same command
once for each process, with torchrun's variables in its environment, and ends all of them when one
fails. Their errors come back in files; the launcher shows the one that began it. What the processes
do with each other is in `prlhf.distributed`, how machines meet in `prlhf.machines`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from prlhf.errors import UserError, UserErrors
from prlhf.failures import EXIT_TERMINATED, EXIT_USER, chain, user_lines
from prlhf.io import write_json
from prlhf.machines import Place, announced, next_run
from prlhf.progress import say
from prlhf.stage_list import STAGES

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    from prlhf.params import LaunchParams

LAUNCHER = "PRLHF_LAUNCHER"
"""Environment variable of a process: the launcher that it must not outlive."""

GRACE = 5
"""Seconds that the other processes have to end after one failed."""

_POLL = 0.2


# -- the launcher --------------------------------------------------------------------------------


def run(label: str, command: Sequence[str], launch: LaunchParams) -> None:
    """Run a stage in several processes, to its end.

    Args:
        label: what the stage is called in messages.
        command: the stage's command line, without `prlhf`.
        launch: how many processes, and where.

    Raises:
        UserError: a process found a mistake of the user's, was killed, or lost another one.
        SystemExit: a process failed with an error of the program's; its traceback has been shown.
    """
    if launch.machines == 1:
        _start(label, command, launch, None)
        return
    place = Place.of(os.environ, launch.machines)
    if place.machine == 0:
        with announced(label, command, launch.machines, place):
            _start(label, command, launch, place)
        return
    say(f"{label}: waiting for machine 0 at {place}")
    found = next_run(place, None, None)
    if found is None or found["command"] != list(command):
        raise UserError(
            f"machine 0 runs {found['label'] if found else 'nothing'}",
            where=label,
            fix="run the same on all machines, or `prlhf join` on all but machine 0",
        )
    _start(label, command, launch, place)


def _start(label: str, command: Sequence[str], launch: LaunchParams, place: Place | None) -> None:
    """Run the processes of this machine, with those of the others, to their end."""
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    threads = str(max(1, (os.cpu_count() or 1) // launch.processes))
    variables = {
        LAUNCHER: str(os.getpid()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
    }
    with tempfile.TemporaryDirectory(prefix="prlhf-") as directory:
        config = LaunchConfig(
            min_nodes=launch.machines,
            max_nodes=launch.machines,
            nproc_per_node=launch.processes,
            run_id="prlhf",
            # On one machine a free port, on several the store that machine 0 has opened.
            rdzv_backend="static" if place else "c10d",
            rdzv_endpoint=str(place) if place else "localhost:0",
            rdzv_configs={"rank": place.machine} if place else {},
            local_addr=None if place else "localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=directory),
            signals_to_handle="SIGTERM,SIGINT,SIGHUP",
            shutdown_timeout=GRACE,
        )
        try:
            with _as_before(variables):
                elastic_launch(config, sys.executable)("-m", "prlhf", *command)
        except ChildFailedError as error:
            _explain(label, error.failures, launch.processes * launch.machines)
        except SignalException as error:
            # The processes are gone; end as any other command does.
            signal.raise_signal(error.sigval)
        except DistError as error:
            problem = f"the machines lost each other: {str(error).splitlines()[0]}"
            raise UserError(problem, where=label) from error


@contextlib.contextmanager
def _as_before(variables: Mapping[str, str]) -> Iterator[None]:
    """With other variables and a silent log; without torch's signal handlers when it is over."""
    before = {name: os.environ.get(name) for name in variables}
    handlers = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    os.environ.update(variables)
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
        for number, handler in handlers.items():
            signal.signal(number, handler)


# -- errors --------------------------------------------------------------------------------------


class Kind(IntEnum):
    """How a process ended; the least of them began it, and the others followed."""

    MISTAKE = 0
    """The user's or the machine's, as `user_lines` knows them."""
    BUG = 1
    """Any other error."""
    KILLED = 2
    """By a signal that is not ours."""
    LEFT_ALONE = 3
    """Another process was gone."""
    TERMINATED = 4
    """As the launcher does with those that are left."""


def _explain(label: str, failures: Mapping[int, ProcessFailure], processes: int) -> None:
    """Raise what a single process would have, for the failure that began it."""
    found = []
    for number, failure in failures.items():
        record: dict[str, Any] = failure.error_file_data
        if "kind" in record:
            found.append((Kind(record["kind"]), record["time"], number, record))
        else:
            status = -signal.SIGTERM if failure.exitcode == EXIT_TERMINATED else failure.exitcode
            kind = Kind.KILLED if status < 0 else Kind.BUG
            kind = Kind.TERMINATED if status == -signal.SIGTERM else kind
            found.append((kind, failure.timestamp, number, {"status": status}))
    kind, _, number, record = min(found, key=lambda each: each[:3])
    which = f"process {number} of {processes}"
    if kind is Kind.MISTAKE:
        raise UserErrors([UserError(line) for line in record["lines"]])
    if kind in {Kind.KILLED, Kind.TERMINATED}:
        name = signal.Signals(-record["status"]).name
        raise UserError(
            f"{which} was ended by {name}",
            where=label,
            fix="the system does that when memory is short; the next run goes on from the last "
            "checkpoint, if there is one",
        )
    if kind is Kind.LEFT_ALONE:
        raise UserError(
            f"{which} lost its connection to another one",
            where=label,
            fix="see what the other machines say",
        )
    say(record.get("traceback", ""))
    say(f"error: {label}: {which} failed")
    raise SystemExit(1)


# -- a process -----------------------------------------------------------------------------------


def is_process() -> bool:
    """Whether this command is one of several processes, started by `run` or by torchrun."""
    return all(name in os.environ for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))


@contextlib.contextmanager
def process(strategy: str) -> Iterator[None]:
    """What a process of several does around its work: meet the others, and report errors.

    Args:
        strategy: as in `launch.strategy`.
    """
    _end_with_launcher()
    try:
        try:
            from prlhf import distributed

            with distributed.joined(strategy):
                yield
        except Exception as error:  # noqa: BLE001 - the launcher raises it again
            _report(error)
            _leave(EXIT_USER)
    except KeyboardInterrupt:
        # Even amid a report: the launcher ends a process when another one failed first.
        _leave(EXIT_TERMINATED)


def _leave(status: int) -> None:
    """End at once: an orderly end would wait for processes that wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _report(error: Exception) -> None:
    """Leave the error where the launcher looks for it; say it if there is none."""
    lines = user_lines(error)
    trace = "".join(traceback.format_exception(error)).rstrip()
    kind = Kind.MISTAKE if lines else Kind.BUG
    if any(map(_is_lost_connection, chain(error))):
        kind = Kind.LEFT_ALONE
    record = {
        "message": str(error),
        "timestamp": int(time.time()),
        "time": time.time(),
        "kind": kind,
        "lines": lines,
        "traceback": trace,
    }
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        # Whole or not at all: the launcher cannot read a part.
        write_json(path, record)
    else:
        sys.stderr.write("".join(f"error: {line}\n" for line in lines or [trace]))


def _is_lost_connection(error: BaseException) -> bool:
    """Gloo reports in words only; NCCL has a class of its own."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error).lower()
    )


def _end_with_launcher() -> None:
    """End when the launcher is gone, however it ended: nobody would end this process otherwise."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return

    def watch() -> None:
        while os.getppid() == int(launcher):
            time.sleep(_POLL)
        os._exit(EXIT_TERMINATED)

    threading.Thread(target=watch, daemon=True).start()


# -- several machines ----------------------------------------------------------------------------


def join(place: Place, patience: float | None) -> None:
    """On another machine: take part in what machine 0 runs, one stage after the other.

    A stage that fails is machine 0's affair; this machine waits for the next.

    Args:
        place: this machine, and where machine 0 listens.
        patience: seconds without work until this returns; None for any time.
    """
    from prlhf.params import load

    last = None
    say(f"join: waiting for machine 0 at {place}")
    while (found := next_run(place, last, patience)) is not None:
        last, label = found["run"], found["label"]
        say(f"join: {label}: started")
        try:
            _start(label, _checked(found["command"]), load().launch, place)
            say(f"join: {label}: done")
        except UserError as error:
            for line in error.lines():
                say(f"error: {line}")
        except SystemExit:
            continue


def _checked(command: list[str]) -> list[str]:
    """A command from the network, which may run a stage and nothing else."""
    shared = [stage for stage in STAGES if stage.shared and stage.command == command[0]]
    method = command[2] if len(command) == 3 else None
    if not shared or shared[0].arguments(method) != command:
        raise UserError(f"machine 0 asks for {command}, which is no stage", where="prlhf join")
    return command

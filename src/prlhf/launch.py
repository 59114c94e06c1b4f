"""Several processes for one stage, on one machine or several: starting them, reporting errors.

The command that was called becomes the launcher: torch's elastic agent starts the same command once
per process, with torchrun's variables in its environment, and ends all of them when one fails.
Their errors come back in files; the launcher shows the one behind the others. How the processes
work together is in `prlhf.infra.distributed`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from prlhf.infra import signals
from prlhf.infra.errors import EXIT_TERMINATED, EXIT_USER, UserError, UserErrors, chain, user_lines
from prlhf.infra.io import write_json
from prlhf.infra.progress import say
from prlhf.stages import STAGES

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    from prlhf.params import LaunchParams

LAUNCHER = "PRLHF_LAUNCHER"  # variable of a process: the id of its launcher, with which it ends
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # what ends launcher and processes
GRACE = 5  # seconds that the other processes have to end after one failed
PORT = 29500  # where machine 0 listens, unless MASTER_PORT says otherwise
_POLL = 0.2  # seconds between two looks at something that is waited for
_DOCS = "docs/distributed.md has examples"
_ALIKE = "run the same on all machines, or `prlhf join` on all but machine 0"
_RUN = "prlhf/run"


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
    place = Place.of(os.environ, launch.machines) if launch.machines > 1 else None
    with contextlib.ExitStack() as stack:
        if place and place.machine == 0:
            stack.enter_context(announced(label, command, launch.machines, place))
        elif place:
            _wait(label, command, place)
        _start(label, command, launch, place)


def _wait(label: str, command: Sequence[str], place: Place) -> None:
    """On another machine: wait until machine 0 runs the same command; `UserError` if another."""
    say(f"{label}: waiting for machine 0 at {place}")

    def refusal(asked: list[str]) -> str:
        return "" if asked == list(command) else f"runs {label}"

    found = next_run(place, None, None, refusal)
    if found is None or refusal(found["command"]):
        problem = f"machine 0 runs {found['label'] if found else 'nothing'}"
        raise UserError(problem, where=label, fix=_ALIKE)


def _start(label: str, command: Sequence[str], launch: LaunchParams, place: Place | None) -> None:
    """Run the processes of this machine, with those of the others, to their end."""
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    threads = str(max(1, (os.cpu_count() or 1) // launch.processes))
    threads = os.environ.get("OMP_NUM_THREADS", threads)
    variables = {LAUNCHER: str(os.getpid()), "OMP_NUM_THREADS": threads}
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
            signals_to_handle=",".join(each.name for each in HANDLED if not signals.ignored(each)),
            shutdown_timeout=GRACE,
        )
        try:
            with _restored(variables):
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
def _restored(variables: Mapping[str, str]) -> Iterator[None]:
    """Set `variables` and silence logs; afterwards undo that, and torch's signal handlers."""
    before = {name: os.environ.get(name) for name in variables}
    handlers = {number: signal.getsignal(number) for number in HANDLED}
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


class Ending(IntEnum):
    """How a process failed; the lower, the likelier it is why the others failed too."""

    MISTAKE = 0  # of the user's or the machine's, as `user_lines` knows them
    BUG = 1  # any other exception
    KILLED = 2  # by a signal other than the launcher's
    LEFT_ALONE = 3  # it lost its connection to another process
    TERMINATED = 4  # by the launcher, because another process failed


def _explain(label: str, failures: Mapping[int, ProcessFailure], processes: int) -> None:
    """Raise what a single process would have raised, for the failure behind the others."""
    found = []
    for number, failure in failures.items():
        record: dict[str, Any] = failure.error_file_data
        if "kind" in record:
            found.append((Ending(record["kind"]), record["time"], number, record))
        elif failure.exitcode in {-signal.SIGTERM, EXIT_TERMINATED}:
            record = {"status": -signal.SIGTERM}
            found.append((Ending.TERMINATED, failure.timestamp, number, record))
        else:
            ending = Ending.KILLED if failure.exitcode < 0 else Ending.BUG
            found.append((ending, failure.timestamp, number, {"status": failure.exitcode}))
    ending, _, number, record = min(found, key=lambda each: each[:3])
    which = f"process {number} of {processes}"
    if ending is Ending.MISTAKE:
        raise UserErrors([UserError(line) for line in record["lines"]])
    if ending is Ending.BUG:
        say(record.get("traceback", ""))
        say(f"error: {label}: {which} failed")
        raise SystemExit(1)
    if ending is Ending.LEFT_ALONE:
        problem, fix = "lost its connection to another one", "see what the other machines say"
    else:
        problem = f"was ended by {signal.Signals(-record['status']).name}"
        fix = "memory may be short; the next run goes on from the last checkpoint, if there is one"
    raise UserError(f"{which} {problem}", where=label, fix=fix)


# -- a process -----------------------------------------------------------------------------------


def is_process() -> bool:
    """Whether this command is one of several processes, started by `run` or by torchrun."""
    return all(name in os.environ for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))


@contextlib.contextmanager
def process(strategy: str) -> Iterator[None]:
    """Do a process's share of the work: meet the others before it, and report errors.

    Args:
        strategy: as in `launch.strategy`.
    """
    _end_with_launcher()
    try:
        try:
            from prlhf.infra import distributed

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
    """Leave the error where the launcher looks for it; without a launcher, print it."""
    from torch.distributed import DistError

    lines = user_lines(error)
    trace = "".join(traceback.format_exception(error)).rstrip()
    ending = Ending.MISTAKE if lines else Ending.BUG
    for link in chain(error):
        # NCCL has a class of its own; gloo says it in words only.
        gloo = isinstance(link, RuntimeError) and "gloo" in str(link).lower()
        if gloo or isinstance(link, DistError):
            ending = Ending.LEFT_ALONE
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        sys.stderr.write("".join(f"error: {line}\n" for line in lines or [trace]))
        return
    now = time.time()
    record = {"message": str(error), "timestamp": int(now), "time": now, "kind": ending}
    # Atomically: the launcher cannot read half a file.
    write_json(path, record | {"lines": lines, "traceback": trace})


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


@dataclass(frozen=True)
class Place:
    """Which of the machines this is, and where machine 0 listens."""

    machine: int
    address: str
    port: int

    @classmethod
    def of(cls, environment: Mapping[str, str], machines: int) -> Place:
        """Read NODE_RANK, MASTER_ADDR and MASTER_PORT.

        Raises:
            UserError: one is missing or makes no sense.
        """
        address = environment.get("MASTER_ADDR")
        if not address:
            problem = f"launch.machines is {machines}, but nothing says where machine 0 is"
            fix = f"set it to machine 0's name or address; {_DOCS}"
            raise UserError(problem, where="MASTER_ADDR", fix=fix)
        machine = _number(environment, "NODE_RANK", None, machines - 1)
        return cls(machine, address, _number(environment, "MASTER_PORT", str(PORT), 65535))

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


def _number(environment: Mapping[str, str], name: str, default: str | None, most: int) -> int:
    text = environment.get(name, default)
    if text is None or not text.isdecimal() or int(text) > most:
        problem = "is not set" if text is None else f"{text!r} is invalid"
        fix = f"set it to a number from 0 to {most}; {_DOCS}"
        raise UserError(problem, where=name, fix=fix)
    return int(text)


@contextlib.contextmanager
def announced(label: str, command: Sequence[str], machines: int, place: Place) -> Iterator[None]:
    """On machine 0: tell the other machines what runs, and wait until all of them are there.

    Args:
        label: what the stage is called in messages.
        command: its command line, without `prlhf`.
        machines: how many there are, including this one.
        place: where this machine listens while the context lasts.

    Raises:
        UserError: it cannot listen there, or another machine is there for something else.
    """
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

    try:
        store = TCPStore(
            place.address, place.port, is_master=True, wait_for_workers=False, multi_tenant=True
        )
    except DistError as error:
        problem = f"cannot listen at {place}: {str(error).splitlines()[0]}"
        fix = "MASTER_ADDR is this machine's address, MASTER_PORT a free port of it"
        raise UserError(problem, where=label, fix=fix) from error
    run = {"run": uuid.uuid4().hex, "label": label, "command": list(command)}
    store.set(_RUN, json.dumps(run))
    others = [f"{_RUN}/{machine}" for machine in range(1, machines)]
    say(f"{label}: waiting for {len(others)} more machine{'s'[: len(others) - 1]} at {place}")
    while not store.check(others):
        time.sleep(_POLL)
    for machine, key in enumerate(others, 1):
        if refusal := store.get(key).decode():
            raise UserError(f"machine {machine} {refusal}", where=label, fix=_ALIKE)
    yield


def next_run(
    place: Place, last: str | None, patience: float | None, refusal: Callable[[list[str]], str]
) -> dict[str, Any] | None:
    """On another machine: what machine 0 runs next, as soon as it runs something.

    Args:
        place: this machine, and where machine 0 listens.
        last: the id of the run that this machine last took part in.
        patience: seconds to wait at most; None to wait for ever.
        refusal: why this machine takes no part in a command, as machine 0 is told; empty if it
            does.

    Returns:
        Its `run` (an id), `label` and `command`; None if nothing came.
    """
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

    deadline = None if patience is None else time.monotonic() + patience
    where, timeout = (place.address, place.port), timedelta(seconds=1)
    while deadline is None or time.monotonic() < deadline:
        # Until somebody listens: the store would print lengthy warnings.
        with contextlib.suppress(DistError, OSError):
            socket.create_connection(where, timeout=1).close()
            store = TCPStore(*where, is_master=False, wait_for_workers=False, timeout=timeout)
            if store.check([_RUN]):
                found: dict[str, Any] = json.loads(store.get(_RUN))
                if found["run"] != last:
                    store.set(f"{_RUN}/{place.machine}", refusal(found["command"]))
                    return found
        time.sleep(_POLL)
    return None


def follow(place: Place, patience: float | None) -> None:
    """On another machine: take part in what machine 0 runs, one stage after the other.

    A stage that fails is reported by machine 0; this machine waits for the next.

    Args:
        place: this machine, and where machine 0 listens.
        patience: seconds without work until this returns; None to wait for ever.
    """
    from prlhf.params import load

    last = None
    say(f"join: waiting for machine 0 at {place}")
    while (found := next_run(place, last, patience, _refusal)) is not None:
        last, label = found["run"], found["label"]
        say(f"join: {label}: started")
        try:
            if refusal := _refusal(found["command"]):
                raise UserError(f"this machine {refusal}", where="prlhf join")
            _start(label, found["command"], load().launch, place)
            say(f"join: {label}: done")
        except UserError as error:
            for line in error.lines():
                say(f"error: {line}")
        except SystemExit:
            continue


def _refusal(command: list[str]) -> str:
    """Why a command from the network is not run: only a stage may be."""
    method = command[2] if len(command) == 3 else None
    stages = [stage.arguments(method) for stage in STAGES if stage.shared]
    return "" if command in stages else f"is asked for {command}, which is no stage"

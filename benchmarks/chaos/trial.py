"""One trial of the campaign, and the process that watches trials: a hang or a crash ends only one.

A trial is known by its part and number, which seed everything random in it. It ends well if the
pipeline did its work or refused it in plain lines; anything else is a fault.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import multiprocessing
import multiprocessing.connection
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import unicodedata
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import IO, Any, Final

from prlhf.infra.errors import user_lines

USED: Final = "used"
REFUSED: Final = "refused"
NOT_RUN: Final = "not run"

LONGEST: Final = 2000
"""Characters of a line that a person can still read."""

STACKS: Final = "stacks"
"""The file of a worker that tells where it is."""

STARTING: Final = 600.0
"""Seconds that a worker may take to prepare."""


class Fault(Exception):
    """What must not happen: `kind` in a word or two, `detail` in a line."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


class NotRun(Exception):
    """This machine lacks what the trial needs."""


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        number: Of the trial.
        about: What was tried, in words.
        ended: `USED`, `REFUSED`, `NOT_RUN`, or the kind of fault.
        detail: What was said, or where it went wrong.
    """

    number: int
    about: str
    ended: str
    detail: str = ""

    @property
    def fault(self) -> bool:
        return self.ended not in (USED, REFUSED, NOT_RUN)


@dataclass
class Trial:
    """What a part's function is given: a number, randomness of its own and an empty directory."""

    part: str
    number: int
    directory: Path
    output: IO[bytes]
    tell: Callable[[str], None]
    about: str = ""
    random: Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = Random(f"{self.part}:{self.number}")

    def tries(self, what: str) -> None:
        """Say what is tried, before it is: who watches must know if it never ends."""
        self.about = what
        self.tell(what)

    def said(self) -> str:
        """What was printed since the trial began, by whatever library."""
        sys.stdout.flush()
        sys.stderr.flush()
        self.output.seek(0)
        return self.output.read().decode(errors="replace")


@dataclass(frozen=True)
class Part:
    """A part of the campaign.

    Attributes:
        name: What the command line calls it.
        title: What the page calls it.
        count: Trials of the whole campaign.
        attempt: Makes one trial: returns `USED` or `REFUSED` and what was said, or raises `Fault`.
        patience: Seconds after which a trial hangs; a busy machine must not reach them.
        memory: Bytes of address space that a worker may take; None for no limit.
        setup: Makes what all trials of a worker share, in a directory of its own.
    """

    name: str
    title: str
    count: int
    attempt: Callable[[Trial, Any], tuple[str, str]]
    patience: float
    memory: int | None = None
    setup: Callable[[Path], Any] = lambda _: None


# -- what counts as plain --------------------------------------------------------------------------


def refusal(error: Exception, *, most: int = 1) -> str:
    """The lines that tell a user of `error`.

    Raises:
        Fault: It is no error of the user's, or its lines are more than `most`, not plain, or name
            no place.
    """
    if isinstance(error, MemoryError):
        raise Fault("memory", _frame(error)) from error
    lines = user_lines(error)
    if not lines:
        raise Fault("traceback", f"{_frame(error)}: {_line(error)}") from error
    if len(lines) > most:
        raise Fault("lines", f"{len(lines)} lines: {lines[0]}")
    for line in lines:
        plain(line)
        if ": " not in line:
            raise Fault("no place", line)
    return lines[0]


def plain(line: str) -> None:
    """Check that a line can be printed and read.

    Raises:
        Fault: It cannot.
    """
    try:
        line.encode()
    except UnicodeEncodeError:
        raise Fault("unprintable", ascii(line)[:300]) from None
    if control := [char for char in line if unicodedata.category(char) == "Cc" and char != "\t"]:
        raise Fault("control characters", f"{control[0]!r} in {ascii(line)[:300]}")
    if len(line) > LONGEST:
        raise Fault("long line", f"{len(line)} characters: {line[:200]}")


def quiet(said: str, *prefixes: str) -> None:
    """Check that nothing was printed but plain lines of these commands.

    Raises:
        Fault: A library said something, or a line is not plain.
    """
    for line in said.splitlines():
        if not line.startswith(prefixes):
            raise Fault("raw output", line[:300])
        plain(line)


def _frame(error: BaseException) -> str:
    """Where in this project an error came from: the innermost line of its own code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/prlhf/" in frame.filename or "/flows/" in frame.filename]
    frame = (own or frames)[-1]
    name = Path(frame.filename)
    return f"{name.parent.name}/{name.name}:{frame.lineno}"


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


# -- trials in a process of their own --------------------------------------------------------------


def run(
    part: Part, numbers: Iterable[int], work: Path, workers: int
) -> Generator[Outcome, None, None]:
    """Make trials in `workers` processes, and give the outcome of each as it ends.

    The files of a faulty trial stay in `work/<part>-<number>`. A trial that hangs is killed with
    all that it started.
    """
    work.mkdir(parents=True, exist_ok=True)
    waiting = list(numbers)
    running = [_Worker(part, waiting[first::workers], work) for first in range(workers)]
    try:
        while running:
            ready = multiprocessing.connection.wait([each.connection for each in running], 1.0)
            for worker in list(running):
                yield from worker.outcomes(worker.connection in ready)
                if worker.over:
                    running.remove(worker)
    finally:
        for worker in running:
            worker.kill()


class _Worker:
    """A process that makes some trials one after another, and is replaced when it dies."""

    def __init__(self, part: Part, numbers: list[int], work: Path) -> None:
        self.part = part
        self.left = numbers
        self.work = work
        self._start()

    @property
    def over(self) -> bool:
        return not self.left

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, other = context.Pipe(duplex=False)
        self.shared = Path(tempfile.mkdtemp(prefix="shared-", dir=self.work))
        self.process = context.Process(
            target=_work, args=(self.part, self.left, self.work, self.shared, other)
        )
        self.process.start()
        other.close()
        self.about = ""
        self.started = False
        self.clock = _Clock(max(STARTING, self.part.patience))

    def outcomes(self, ready: bool) -> Iterator[Outcome]:
        if not ready:
            if self.clock.over():
                yield from self._lost("hang", self._stack())
            return
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            if self.left:
                self.process.join()
                status = self.process.exitcode or 0
                how = signal.Signals(-status).name if status < 0 else f"status {status}"
                yield from self._lost("crash", f"the process ended with {how}; {self._stack()}")
            return
        self.clock = _Clock(self.part.patience)
        self.started = True
        if isinstance(message, Outcome):
            self.left = self.left[1:]
            if message.fault:
                self._keep(message)
            yield message
            if self.over:
                self.process.join()
                shutil.rmtree(self.shared)
        else:
            self.about = message

    def _stack(self) -> str:
        """Where the process is, as far as it can still tell."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid or 0, signal.SIGUSR1)
            self.process.join(2)
        lines = (self.shared / STACKS).read_text().splitlines()
        return next((line.strip() for line in lines if "/prlhf/" in line), "")

    def _lost(self, kind: str, detail: str) -> Iterator[Outcome]:
        self.kill()
        if not self.started:
            raise RuntimeError(f"{self.part.name}: the worker could not prepare: {kind}: {detail}")
        outcome = Outcome(self.left[0], self.about, kind, detail)
        self.left = self.left[1:]
        self._keep(outcome)
        yield outcome
        if self.left:
            self._start()

    def _keep(self, outcome: Outcome) -> None:
        """Leave word of a fault beside the files that led to it."""
        text = json.dumps(asdict(outcome), indent=2, ensure_ascii=True)
        (self.work / f"{self.part.name}-{outcome.number}" / "outcome.json").write_text(text)

    def kill(self) -> None:
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError):
                kill(self.process.pid or 0, signal.SIGKILL)
        self.process.join()
        shutil.rmtree(self.shared, ignore_errors=True)


class _Clock:
    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def over(self) -> bool:
        return time.monotonic() > self.end


def _work(part: Part, numbers: list[int], work: Path, shared: Path, connection: Connection) -> None:
    os.setsid()
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    with (
        (shared / STACKS).open("w") as found,
        tempfile.TemporaryFile(buffering=0) as output,
    ):
        faulthandler.enable(found)
        faulthandler.register(signal.SIGUSR1, found)
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
        os.set_inheritable(output.fileno(), False)
        prepared = part.setup(shared)
        if part.memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (part.memory, part.memory))
        for number in numbers:
            directory = work / f"{part.name}-{number}"
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            output.seek(0)
            output.truncate()
            connection.send("")
            trial = Trial(part.name, number, directory, output, connection.send)
            outcome = attempted(part, trial, prepared)
            if not outcome.fault:
                shutil.rmtree(directory, ignore_errors=True)
            connection.send(outcome)


def _leave_with(parent: int) -> None:
    """End this process, and all that it started, when the campaign is killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


def attempted(part: Part, trial: Trial, prepared: Any) -> Outcome:
    """The outcome of one trial, whatever it raises."""
    before = Path.cwd()
    os.chdir(trial.directory)
    try:
        ended, detail = part.attempt(trial, prepared)
    except NotRun as reason:
        ended, detail = NOT_RUN, str(reason)
    except Fault as fault:
        ended, detail = fault.kind, fault.detail
    except MemoryError as error:
        ended, detail = "memory", _frame(error)
    except Exception as error:  # noqa: BLE001 (whatever it is, it is what is looked for)
        ended, detail = "traceback", f"{_frame(error)}: {_line(error)}"
    finally:
        os.chdir(before)
    return Outcome(trial.number, trial.about, ended, detail)

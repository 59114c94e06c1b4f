"""Makes the missing runs of an ablation, each an experiment of DVC's.

The user's files are left alone, and may change meanwhile: runs take place in a Git clone of the
last commit that shares DVC's cache, in `.dvc/tmp/ablations`. So what runs have in common is
computed once, and a training that was killed goes on from its last checkpoint. The clone is removed
when all is done.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import IO, TextIO

from prlhf.ablation.definition import Run
from prlhf.ablation.runs import EXPERIMENTS, Project, reference
from prlhf.copies import configure, git
from prlhf.dvc_command import DVC, environment, failure
from prlhf.errors import UserError
from prlhf.io import write_text
from prlhf.params.loading import PARAMS_FILE
from prlhf.progress import clock, say

PLACE = Path(".dvc/tmp/ablations")
GRACE = 15.0
"""Seconds that a run has to end after Ctrl-C's signal, before it is killed."""

_DONE = re.compile(r"^\S+: done in [\d.]+ s$")


@dataclass
class Count:
    """How many runs of how many are done, and what the rest will take.

    Attributes:
        total: Runs of all ablations, those that were there already too.
        begun: How many of them were started or were there.
        took: Seconds of each that was run.
    """

    total: int
    begun: int = 0
    took: list[float] = field(default_factory=list)

    def begin(self, ablation: str, run: Run, jobs: int) -> str:
        """The line that announces a run."""
        self.begun += 1
        line = f"{self.begun}/{self.total} {ablation}: {run.setting}, seed {run.seed}"
        if not self.took:
            return line
        left = self.total - self.begun + 1
        return f"{line}, ETA {clock(left * sum(self.took) / len(self.took) / jobs)}"


class Runner:
    """Makes runs, up to `jobs` at a time. Use it as a context: it holds the project's lock.

    Args:
        project: The project.
        jobs: Runs at the same time.

    Raises:
        UserError: On entering: another ablation is being run.
    """

    def __init__(self, project: Project, jobs: int = 1) -> None:
        self._project = project
        self._jobs = jobs
        self._place = project.root / PLACE
        self._guard = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False
        self._lock: TextIO | None = None

    def __enter__(self) -> Runner:
        self._place.mkdir(parents=True, exist_ok=True)
        self._lock = (self._place / "lock").open("w")
        try:
            # The system drops it with the last process that holds it: dvc, if this one is killed.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise UserError(
                "another ablation of this project is being run",
                where=self._place,
                fix="wait for its end; give it several names at once",
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def make(self, ablation: str, runs: Sequence[Run], count: Count) -> list[UserError]:
        """Make runs; a failure does not keep the others from being made.

        Args:
            ablation: Its name, for the lines that are printed.
            runs: What to run.
            count: Counts them.

        Returns:
            Why runs failed, one line each.
        """
        failures: list[UserError] = []
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(min(self._jobs, len(runs))):
            copies.put(self._place / f"copy-{number + 1}")

        def one(run: Run) -> None:
            if self._stopped:
                return
            copy = copies.get()
            with self._guard:
                say(count.begin(ablation, run, self._jobs))
            started = time.monotonic()
            try:
                self._make(copy, run)
                count.took.append(time.monotonic() - started)
            except UserError as error:
                if not self._stopped:
                    say(f"error: {error}")
                    failures.append(error)
            finally:
                copies.put(copy)

        pool = ThreadPoolExecutor(max(1, min(self._jobs, len(runs))))
        try:
            for made in [pool.submit(one, run) for run in runs]:
                made.result()
        except BaseException:
            self.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return failures

    def stop(self) -> None:
        """End what is running; nothing starts any more."""
        self._stopped = True
        with self._guard:
            running = list(self._running)
        for process in running:
            _signal(process, signal.SIGINT)
        deadline = time.monotonic() + GRACE
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            _signal(process, signal.SIGKILL)

    def clean(self) -> None:
        """Remove the copies: all that they hold is in the experiments and in the cache."""
        for copy in self._place.glob("copy-*"):
            shutil.rmtree(copy, ignore_errors=True)

    def _make(self, copy: Path, run: Run) -> None:
        project = self._project
        inside = copy / project.root.relative_to(project.top)
        _populate(project, copy)
        configure(project.root, inside, project.cache)
        write_text(inside / PARAMS_FILE, run.text)
        log = log_file(project, run.experiment)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as file:
            status, lines = self._command(
                [*DVC, "exp", "run", "--name", run.experiment, "--message", run.experiment],
                inside,
                file,
            )
        if status:
            where = f"{run.setting}, seed {run.seed}"
            raise UserError(
                failure(lines), where=where, fix=f"its output: {log.relative_to(project.root)}"
            )
        made = reference(project.head, run.experiment)
        with self._guard:
            git(project.root, "fetch", "--quiet", "--no-tags", str(copy), f"+{made}:{made}")

    def _command(self, command: list[str], cwd: Path, log: IO[str]) -> tuple[int, list[str]]:
        lines: list[str] = []
        assert self._lock is not None
        with self._guard:
            if self._stopped:
                raise UserError("stopped")
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=environment(cwd),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
                pass_fds=[self._lock.fileno()],
            )
            self._running.add(process)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                log.flush()
                lines.append(line.rstrip())
                if _DONE.match(lines[-1]):
                    say(f"  {lines[-1]}")
            return process.wait(), lines
        finally:
            with self._guard:
                self._running.discard(process)


def log_file(project: Project, experiment: str) -> Path:
    """Where all that a run printed is."""
    return project.root / PLACE / "logs" / f"{experiment}.log"


def _populate(project: Project, copy: Path) -> None:
    """Bring a copy to the files of the commit, whatever an earlier run has left there."""
    if (copy / ".git").is_dir():
        # A kill can leave Git's own locks behind: then a new clone is made.
        with contextlib.suppress(UserError):
            _checkout(project, copy)
            return
    shutil.rmtree(copy, ignore_errors=True)
    clone = ("clone", "--quiet", "--shared", "--no-checkout")
    git(project.top, *clone, str(project.top), str(copy))
    for key in ("user.name", "user.email"):
        git(copy, "config", key, _setting(project, key))
    _checkout(project, copy)


def _checkout(project: Project, copy: Path) -> None:
    git(copy, "checkout", "--quiet", "--force", "--detach", project.head)
    git(copy, "clean", "--quiet", "-d", "--force")
    # DVC would go on with what a killed run has stashed there.
    for name in git(copy, "for-each-ref", "--format=%(refname)", EXPERIMENTS).split():
        git(copy, "update-ref", "-d", name)


def _setting(project: Project, key: str) -> str:
    """Whose the experiments' commits are: the user's, if Git knows one."""
    try:
        return git(project.root, "config", key).strip()
    except UserError:
        return {"user.name": "prlhf", "user.email": "prlhf@localhost"}[key]


def _signal(process: subprocess.Popen[str], number: int) -> None:
    """Signal a command and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)

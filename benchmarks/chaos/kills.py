"""Part `kills`: the main job, interrupted in every way, ends with the bytes of a calm run.

Each trial starts from a project in which nothing has run, so that what it makes is all its own.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import psutil

from benchmarks.chaos.project import Project, Result, clone, descendants, end
from benchmarks.chaos.trial import USED, Fault, NotRun, Part, Trial

PATIENCE: Final = 1800.0
"""Seconds for one command: an undisturbed run takes two minutes on two cores of one's own."""

KILLS: Final = 10
"""Kills of one trial: four trials of them make the campaign's forty."""

DISKS: Final = 8
"""Runs on a disk that is full at some moment, at most."""

REPRO: Final = ("dvc", "repro")
FLOWS: Final = ("python", "-m", "flows", "run")

FULL: Final = """
set -e
directory=$1 free=$2 after=$3
shift 3
mkdir -p "$directory"
cp -a "$directory" "$after"
size=$(($(du -sk "$directory" | cut -f1) + free))
mount -t tmpfs -o "size=${size}k" tmpfs "$directory"
cp -a "$after/." "$directory"
status=0
"$@" || status=$?
rm -rf "$after"
cp -a "$directory" "$after"
exit $status
"""
"""$1 becomes a file system of its own with $2 kB free; $3 keeps what it holds in the end."""

READ_ONLY: Final = """
set -e
mkdir -p "$1"
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
shift
exec "$@"
"""


@dataclass(frozen=True)
class Shared:
    """What all trials of a worker start from.

    Attributes:
        fresh: A project in which nothing has run.
        expected: The hashes of what an undisturbed run makes.
        seconds: How long that took.
    """

    fresh: Project
    expected: dict[str, str]
    seconds: float


def setup(directory: Path) -> Shared:
    """Run the main job undisturbed."""
    fresh = clone(directory / "fresh")
    project = fresh.copy_to(directory / "undisturbed")
    begun = time.monotonic()
    done = project.run(*REPRO, patience=PATIENCE)
    if done.status:
        raise RuntimeError(f"the undisturbed run failed: {done.err[-500:]}")
    return Shared(fresh, project.digests(), time.monotonic() - begun)


def attempt(trial: Trial, shared: Shared) -> tuple[str, str]:
    """One kind of interruption, again and again, until the job is done."""
    name = list(KINDS)[trial.number % len(KINDS)]
    trial.tries(name)
    project = shared.fresh.copy_to(trial.directory / "project")
    return KINDS[name](trial, project, shared)


# -- kill -9 ---------------------------------------------------------------------------------------


def _all(trial: Trial, project: Project, shared: Shared) -> tuple[str, str]:
    """The whole process group, as a machine that is switched off would."""
    return _killed(trial, project, shared, REPRO, lambda process: [process.pid], group=True)


def _stage(trial: Trial, project: Project, shared: Shared) -> tuple[str, str]:
    """One process that DVC started, whichever it is: out of memory, for instance."""
    return _killed(trial, project, shared, REPRO, _some_child(trial.random))


def _flow(trial: Trial, project: Project, shared: Shared) -> tuple[str, str]:
    """One process of a flow: the server that it started, DVC or the stage."""
    return _killed(trial, project, shared, FLOWS, _some_child(trial.random))


def _some_child(random: Random) -> Callable[[subprocess.Popen[str]], list[int]]:
    def choose(process: subprocess.Popen[str]) -> list[int]:
        children = descendants(process.pid)
        return [random.choice(children).pid] if children else [process.pid]

    return choose


def _killed(
    trial: Trial,
    project: Project,
    shared: Shared,
    command: tuple[str, ...],
    victims: Callable[[subprocess.Popen[str]], list[int]],
    *,
    group: bool = False,
) -> tuple[str, str]:
    """Kill a command at `KILLS` random moments, then let it end; one that has ended begins anew."""
    hits = 0
    while hits < KILLS:
        process, before = project.start(*command), hits
        try:
            # Early moments are as good as late ones: each run gets further than the last.
            process.wait(trial.random.uniform(0.02, 0.35) * shared.seconds)
        except subprocess.TimeoutExpired:
            for pid in victims(process):
                with contextlib.suppress(ProcessLookupError):
                    (os.killpg if group else os.kill)(pid, signal.SIGKILL)
                    hits += 1
        done = project.finish(process, PATIENCE)
        if done.status and hits == before:
            raise Fault("does not end", f"after {hits} kills: {_last(done)}")
        if not done.status:
            project.require_same(shared.expected)
            shutil.rmtree(project.path)
            project = shared.fresh.copy_to(project.path)
    return _recovered(project, shared, f"{hits} kills")


def _recovered(project: Project, shared: Shared, what: str) -> tuple[str, str]:
    """Check that the next undisturbed run ends well, with the bytes that it should have."""
    done = project.run(*REPRO, patience=PATIENCE)
    if done.status:
        raise Fault("does not end", f"after {what}: {_last(done)}")
    project.require_same(shared.expected)
    return USED, f"{what}, then the same bytes"


def _last(done: Result) -> str:
    errors = [line for line in done.err.splitlines() if line.lower().startswith("error")]
    return f"status {done.status}: {(errors or done.err.splitlines() or [''])[-1]}"[:300]


# -- a server and a worker -------------------------------------------------------------------------


def _worker(trial: Trial, project: Project, shared: Shared) -> tuple[str, str]:
    """A deployment's worker and the Prefect server, in turn, in the middle of a run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    url = f"http://127.0.0.1:{port}/api"
    # The server's database is in there, and it does not make the directory.
    Path(project.environment()["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    server = ("prefect", "server", "start", "--host", "127.0.0.1", "--port", port)
    worker = ("prefect", "worker", "start", "--pool", "prlhf", "--type", "process")
    hits = 0
    for turn in range(KILLS):
        with _background(project, "server", server, url) as serving:
            _wait_for(f"{url}/health", serving)
            with _background(project, "worker", worker, url) as working:
                _deployed(project, url)
                asked = ("prefect", "deployment", "run", "prlhf/local")
                project.run(*asked, patience=PATIENCE, PREFECT_API_URL=url)
                time.sleep(trial.random.uniform(0.1, 0.5) * shared.seconds)
                victim = (working, serving)[turn % 2]
                for process in [*descendants(victim.pid), psutil.Process(victim.pid)]:
                    with contextlib.suppress(psutil.Error):
                        process.kill()
                        hits += 1
    return _recovered(project, shared, f"{hits} processes killed")


@contextlib.contextmanager
def _background(
    project: Project, name: str, command: tuple[str, ...], url: str
) -> Iterator[subprocess.Popen[str]]:
    with project.path.with_name(f"{name}.log").open("a") as log:
        process = subprocess.Popen(
            command,
            cwd=project.path,
            env=project.environment({"PREFECT_API_URL": url}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            end(process)


def _wait_for(url: str, process: subprocess.Popen[str]) -> None:
    for _ in range(600):
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(url).close()
            return
        if process.poll() is not None:
            break
        time.sleep(0.5)
    raise Fault("does not end", f"no answer from {url}")


def _deployed(project: Project, url: str) -> None:
    for _ in range(60):  # the worker makes the pool
        command = ("prefect", "--no-prompt", "deploy", "--all")
        if project.run(*command, patience=PATIENCE, PREFECT_API_URL=url).status == 0:
            return
        time.sleep(2)
    raise Fault("does not end", "the flows cannot be deployed")


# -- disks -----------------------------------------------------------------------------------------


@functools.cache
def mounting() -> list[str]:
    """The command that runs another one with mounts of its own; none where that is forbidden."""
    for command in (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]):
        with contextlib.suppress(FileNotFoundError):
            test = [*command, "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
            if subprocess.run(test, capture_output=True, check=False).returncode == 0:
                return command
    return []


def _mounted(script: str, *arguments: str) -> list[str]:
    if not mounting():
        raise NotRun("this machine lets nobody mount anything (unshare --mount)")
    return [*mounting(), "sh", "-c", script, "sh", *arguments]


def _full(trial: Trial, project: Project, shared: Shared) -> tuple[str, str]:
    """A disk that is full at a random write, of one directory or another; then there is space."""
    said: list[str] = []
    for _ in range(DISKS):
        directory = trial.random.choice((".cache", "data", "models", ".dvc/cache", "reports"))
        free = str(int(2 ** trial.random.uniform(2, 9)))
        after = project.path.with_name("after")
        shutil.rmtree(after, ignore_errors=True)
        command = _mounted(FULL, directory, free, str(after), *REPRO)
        done = project.run(*command, patience=PATIENCE)
        shutil.rmtree(project.path / directory)
        shutil.move(after, project.path / directory)
        if not done.status:
            break
        said.append(_told(done, "No space left", "no space left"))
    return _recovered(project, shared, f"{len(said)} full disks")


def _read_only(trial: Trial, project: Project, shared: Shared) -> tuple[str, str]:
    """A cache, of this project's or of DVC's, that nothing can be written to."""
    said = []
    for directory in (".cache", ".dvc/cache"):
        done = project.run(*_mounted(READ_ONLY, directory, *REPRO), patience=PATIENCE)
        if done.status:
            said.append(_told(done, "ead-only file system"))
    return _recovered(project, shared, f"{len(said)} of 2 caches refused")


def _told(done: Result, *words: str) -> str:
    """The line that says why a command failed.

    Raises:
        Fault: None does.
    """
    line = next((x for x in done.err.splitlines() if any(word in x for word in words)), None)
    if line is None:
        raise Fault("cause dropped", _last(done))
    return line


# -- two at once -----------------------------------------------------------------------------------


def _two(trial: Trial, project: Project, shared: Shared) -> tuple[str, str]:
    """Two runs at once: one may be refused, none may spoil the other."""
    first = project.start(*REPRO)
    time.sleep(trial.random.uniform(0.0, 0.6) * shared.seconds)
    other_log = project.path.with_name("other.err")
    with other_log.open("w") as log:
        second = subprocess.Popen(
            REPRO,
            cwd=project.path,
            env=project.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    try:
        second.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        raise Fault("hang", "the second of two runs did not end") from None
    finally:
        end(second)
    said = other_log.read_text(errors="replace")
    if "Traceback (most recent call last)" in said:
        raise Fault("traceback", said.strip().splitlines()[-1][:300])
    done = project.finish(first, PATIENCE)
    if done.status and second.returncode:
        raise Fault("does not end", f"both of two runs failed: {_last(done)}")
    return _recovered(project, shared, "two runs at once")


KINDS: Final[dict[str, Callable[[Trial, Project, Shared], tuple[str, str]]]] = {
    "all processes killed": _all,
    "a stage's process killed": _stage,
    "a process of a flow killed": _flow,
    "Prefect's worker and server killed": _worker,
    "disk full": _full,
    "read-only cache": _read_only,
    "two runs at once": _two,
}

KILLED: Final = Part(
    "kills",
    f"The main job interrupted ({KILLS} kills in a row, full disks, two runs at once)",
    len(KINDS),
    attempt,
    (KILLS + 2) * PATIENCE,
    setup=setup,
)

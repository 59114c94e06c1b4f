"""The runs of an ablation, each an experiment of DVC's: those that are there, and missing ones.

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TextIO

from ruamel.yaml import YAML

from prlhf.infra import signals
from prlhf.infra.errors import UserError
from prlhf.infra.io import write_text
from prlhf.infra.progress import clock, say
from prlhf.params import Params
from prlhf.params.loading import PARAMS_FILE, parse
from prlhf.project import pipeline
from prlhf.project.ablations import Ablation, AblationRun
from prlhf.project.dvc import DVC, check_out, configure, environment, failure, git, repository

COMMAND = "prlhf ablate"
EXPERIMENTS = "refs/exps"
PLACE = Path(".dvc/tmp/ablations")
GRACE = 15.0  # seconds that a run has to end after Ctrl-C's signal, before it is killed
_DONE = re.compile(r"^\S+: done in [\d.]+ s$")


class Project(NamedTuple):
    """The project whose runs are looked at.

    Attributes:
        root, top: Its directory, and that of its Git repository.
        head: The commit that runs start from.
        reads: The files and directories that its stages read and no stage makes.
    """

    root: Path
    top: Path
    head: str
    cache: Path
    reads: frozenset[str]


class FoundRun(NamedTuple):
    """A run that is there, the commit of its experiment, and the commit that it started from."""

    run: AblationRun
    commit: str
    start: str


def project_to_run(path: Path = Path()) -> Project:
    """The project that `path` is in.

    Raises:
        UserError: There is none, it is not under Git, or nothing was committed yet.
    """
    with pipeline.open_project(path) as project:
        pipeline.require_git(project, COMMAND)
        stages = pipeline.snapshot(project).stages.values()
        reads = frozenset(name for stage in stages for name in stage.files)
        root = Path(project.root_dir)
        return Project(root, *repository(root), Path(project.cache.local_cache_dir), reads)


def require_committed(project: Project, runs: Iterable[AblationRun]) -> None:
    """Runs start from a commit: what they read has to be in it.

    Raises:
        UserError: A file that the stages read is not as it was committed.
    """
    own = {str(run.params.data.path) for run in runs}
    read = {*project.reads, *own, str(PARAMS_FILE), "dvc.yaml"}
    paths = sorted(path for path in read if _inside(project, path))
    status = ("status", "--porcelain", "--untracked-files=all", "--no-renames", "-z", "--")
    if changed := _not_ignored(project, git(project.root, *status, *paths), 3):
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        problem = f"{changed[0]}{more} changed since the last commit, from which the runs start"
        raise UserError(problem, where=COMMAND, fix="commit first, or `git stash` the change")


def find(project: Project, runs: Iterable[AblationRun]) -> dict[str, FoundRun]:
    """The runs that need not run again, by the names of their experiments.

    Such an experiment has the same parameters, and started from a commit in which everything that
    its stages read is as it is in HEAD: committing a page of documentation does not invalidate it.
    What they read outside of the repository is as it was then, too.
    """
    found: dict[str, FoundRun] = {}
    wanted = {run.experiment: run for run in runs}
    known = sorted(_experiments(project), key=lambda each: each[2] != project.head)
    for name, commit, start in known:
        if name in wanted and name not in found:
            same = _params(project, commit) == wanted[name].params
            if same and _same_inputs(project, commit, start):
                found[name] = FoundRun(wanted[name], commit, start)
    return found


def show(project: Project, commit: str, path: str) -> str | None:
    """A file of the project as it is in a commit; None if it is not there."""
    try:
        return git(project.root, "show", f"{commit}:./{path}")
    except UserError:
        return None


def log_file(project: Project, experiment: str) -> Path:
    """The file that holds all that a run printed."""
    return project.root / PLACE / "logs" / f"{experiment}.log"


def make_missing(
    project: Project,
    wanted: Sequence[tuple[Ablation, Sequence[AblationRun]]],
    jobs: int,
    report: Callable[[Project, Ablation, Sequence[AblationRun]], None],
) -> None:
    """Make the runs of ablations that are not there yet; `report` each ablation after its runs.

    Raises:
        UserError: What the runs read is not committed, or some of them failed.
    """
    every = [run for _, runs in wanted for run in runs]
    require_committed(project, every)
    failures: list[UserError] = []
    with Runner(project, len(every), jobs) as runner:
        for ablation, runs in wanted:
            there = find(project, runs)
            if there:
                say(f"{ablation.name}: {len(there)} of {len(runs)} runs are there already")
            runner.begun += len(there)
            missing = [run for run in runs if run.experiment not in there]
            failures += runner.make(ablation.name, missing)
            report(project, ablation, runs)
        if not failures:
            runner.clean()
    if failures:
        raise UserError(
            f"{len(failures)} of {len(every)} runs failed",
            where=COMMAND,
            fix="the others are kept; run this again for what is missing",
        )


class Runner:
    """Makes runs. Use it as a context: it holds the project's lock.

    Args:
        project: The project.
        total: How many runs there are in all, including those that need not be made.
        jobs: Runs made at the same time.

    Attributes:
        begun: How many of them were begun here, or were there already.
        took: Seconds of each that was made.

    Raises:
        UserError: On entering: another ablation is being run.
    """

    def __init__(self, project: Project, total: int, jobs: int = 1) -> None:
        self.begun = 0
        self.took: list[float] = []
        self._project = project
        self._total = total
        self._jobs = jobs
        self._place = project.root / PLACE
        self._guard = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

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
        self._lock.close()

    def make(self, ablation: str, runs: Sequence[AblationRun]) -> list[UserError]:
        """Make runs of an ablation, and return why some failed; others are made nevertheless."""
        failures: list[UserError] = []
        copies: SimpleQueue[Path] = SimpleQueue()
        jobs = max(1, min(self._jobs, len(runs)))
        for number in range(jobs):
            copies.put(self._place / f"copy-{number + 1}")

        def one(run: AblationRun) -> None:
            if self._stopped:
                return
            copy = copies.get()
            with self._guard:
                say(self.announce(ablation, run))
            started = time.monotonic()
            try:
                self._make(copy, run)
                self.took.append(time.monotonic() - started)
            except UserError as error:
                if not self._stopped:
                    say(f"error: {error}")
                    failures.append(error)
            finally:
                copies.put(copy)

        pool = ThreadPoolExecutor(jobs)
        try:
            for made in [pool.submit(one, run) for run in runs]:
                made.result()
        except BaseException:
            self.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return failures

    def announce(self, ablation: str, run: AblationRun) -> str:
        """Count a run as begun; the line that says so, with the time left if it can be told."""
        left = self._total - self.begun
        self.begun += 1
        line = f"{self.begun}/{self._total} {ablation}: {run.setting}, seed {run.seed}"
        if not self.took:
            return line
        return f"{line}, ETA {clock(left * sum(self.took) / len(self.took) / self._jobs)}"

    def stop(self) -> None:
        """End what is running; nothing starts any more."""
        self._stopped = True
        with self._guard:
            running = list(self._running)
        number = signal.SIGTERM if signals.ignored(signal.SIGINT) else signal.SIGINT
        for process in running:
            _signal(process, number)
        deadline = time.monotonic() + GRACE
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            _signal(process, signal.SIGKILL)

    def clean(self) -> None:
        """Remove the copies: all that they hold is in the experiments and in the cache."""
        for copy in self._place.glob("copy-*"):
            shutil.rmtree(copy, ignore_errors=True)

    def _make(self, copy: Path, run: AblationRun) -> None:
        project, name = self._project, run.experiment
        inside = copy / project.root.relative_to(project.top)
        check_out(project.top, copy, project.head)
        for key, value in (("user.name", "prlhf"), ("user.email", "prlhf@localhost")):
            with contextlib.suppress(UserError):  # then Git knows no user
                value = git(project.root, "config", key).strip()
            git(copy, "config", key, value)
        # DVC would go on with what a killed run has stashed there.
        for ref in git(copy, "for-each-ref", "--format=%(refname)", EXPERIMENTS).split():
            git(copy, "update-ref", "-d", ref)
        configure(project.root, inside, project.cache)
        write_text(inside / PARAMS_FILE, run.text)
        log = log_file(project, name)
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [*DVC, "exp", "run", "--name", name, "--message", name]
        with log.open("w", encoding="utf-8") as file:
            status, lines = self._command(command, inside, file)
        if status:
            fix = f"its output: {log.relative_to(project.root)}"
            problem = failure(lines, status=status)
            raise UserError(problem, where=f"{run.setting}, seed {run.seed}", fix=fix)
        # The reference of an experiment, in DVC's layout.
        made = f"{EXPERIMENTS}/{project.head[:2]}/{project.head[2:]}/{name}"
        with self._guard:
            git(project.root, "fetch", "--quiet", "--no-tags", str(copy), f"+{made}:{made}")

    def _command(self, command: list[str], cwd: Path, log: TextIO) -> tuple[int, list[str]]:
        lines: list[str] = []
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


def _signal(process: subprocess.Popen[str], number: int) -> None:
    """Signal a command and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _experiments(project: Project) -> Iterator[tuple[str, str, str]]:
    """Name, commit and starting commit of each."""
    lines = git(project.root, "for-each-ref", "--format=%(objectname) %(refname)", EXPERIMENTS)
    for line in lines.splitlines():
        commit, _, name = line.partition(" ")
        parts = name.removeprefix(f"{EXPERIMENTS}/").split("/")
        if len(parts) == 3 and len(parts[0] + parts[1]) == len(project.head):
            yield parts[2], commit, parts[0] + parts[1]


def _params(project: Project, commit: str) -> Params | None:
    text = show(project, commit, str(PARAMS_FILE))
    try:
        return None if text is None else parse(text)
    except UserError:
        return None  # of another version of this package


def _inside(project: Project, path: str) -> bool:
    """Whether a file that stages read is in the Git repository."""
    return (project.root / path).resolve().is_relative_to(project.top.resolve())


def _same_inputs(project: Project, commit: str, start: str) -> bool:
    lock = show(project, commit, "dvc.lock")
    stages: Any = YAML(typ="safe", pure=True).load(lock or "").get("stages", {}) if lock else {}
    outs = {out["path"] for stage in stages.values() for out in stage.get("outs", [])}
    deps = {dep["path"]: dep for stage in stages.values() for dep in stage.get("deps", [])}
    outside = {path: dep for path, dep in deps.items() if not _inside(project, path)}
    if outside:
        with pipeline.open_project(project.root) as repo:
            digests = {path: pipeline.digest_outside(repo, path) for path in outside}
        if any(digests[path] != dep.get("md5") for path, dep in outside.items()):
            return False
    if start == project.head:
        return True
    read = {
        path
        for path in deps.keys() - outside.keys()
        if not any(f"{path}/".startswith(f"{out}/") or out.startswith(f"{path}/") for out in outs)
    }
    # Data that DVC tracks have their hash beside them.
    paths = ["dvc.yaml", *sorted(read - {str(PARAMS_FILE)})]
    paths += [f"{path}.dvc" for path in paths]
    try:
        names = git(project.root, "diff", "--name-only", "-z", start, project.head, "--", *paths)
    except UserError:
        return False  # its starting commit is gone
    return not _not_ignored(project, names)


def _not_ignored(project: Project, listing: str, start: int = 0) -> list[str]:
    """The files that count for DVC, of those that Git lists; their names begin at `start`."""
    if not (names := [line[start:] for line in listing.split("\0") if line]):
        return []
    with pipeline.open_project(project.root) as repo:
        ignored = repo.dvcignore.is_ignored_file
        return [name for name in names if not ignored(str(project.top / name))]

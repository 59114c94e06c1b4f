"""The runs that an ablation has already: DVC's experiments, looked up in Git."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from prlhf.ablation.definition import Run
from prlhf.copies import git
from prlhf.errors import UserError
from prlhf.params import Params
from prlhf.params.loading import PARAMS_FILE, parse
from prlhf.review import pipeline

EXPERIMENTS = "refs/exps"
DVC_FILES = ("dvc.yaml", "dvc.lock")


@dataclass(frozen=True)
class Project:
    """The project whose runs are looked at.

    Attributes:
        root: Its directory.
        top: The directory of its Git repository.
        head: The commit that runs start from.
        cache: DVC's cache.
        reads: The files that its stages read and no stage makes.
    """

    root: Path
    top: Path
    head: str
    cache: Path
    reads: frozenset[str]


@dataclass(frozen=True)
class Found:
    """A run that is there.

    Attributes:
        run: Which.
        commit: Of DVC's experiment.
        start: The commit that it started from.
    """

    run: Run
    commit: str
    start: str


def open_project(path: Path = Path()) -> Project:
    """The project that `path` is in.

    Raises:
        UserError: There is none, it is not under Git, or nothing was committed yet.
    """
    with pipeline.open_project(path) as project:
        pipeline.require_git(project, "prlhf ablate")
        stages = pipeline.snapshot(project).stages
        root = Path(project.root_dir)
        return Project(
            root=root,
            top=Path(git(root, "rev-parse", "--show-toplevel").strip()),
            head=git(root, "rev-parse", "HEAD").strip(),
            cache=Path(project.cache.local_cache_dir),
            reads=frozenset(name for stage in stages.values() for name in stage.files),
        )


def require_committed(project: Project, runs: Iterable[Run]) -> None:
    """Runs start from a commit: what they read has to be in it.

    Raises:
        UserError: A file that the stages read is not as it was committed.
    """
    own = {str(run.params.data.path) for run in runs}
    paths = sorted({*project.reads, *own, str(PARAMS_FILE), DVC_FILES[0]})
    status = ("status", "--porcelain", "--untracked-files=all", "--no-renames", "-z", "--")
    changed = [line[3:] for line in git(project.root, *status, *paths).split("\0") if line]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(
            f"{changed[0]}{more} changed since the last commit, from which the runs start",
            where="prlhf ablate",
            fix="commit first, or `git stash` the change",
        )


def find(project: Project, runs: Iterable[Run]) -> dict[str, Found]:
    """The runs that need not run again, by the names of their experiments.

    Such an experiment has the same parameters, and started from a commit in which everything that
    its stages read is as it is in HEAD: a commit of a page of documentation makes none anew.
    """
    found: dict[str, Found] = {}
    wanted = {run.experiment: run for run in runs}
    for name, commit, start in sorted(
        _experiments(project), key=lambda each: each[2] != project.head
    ):
        if name not in wanted or name in found:
            continue
        same = _params(project, commit) == wanted[name].params
        if same and _same_inputs(project, commit, start):
            found[name] = Found(wanted[name], commit, start)
    return found


def reference(start: str, name: str) -> str:
    """The Git reference of an experiment, in DVC's layout."""
    return f"{EXPERIMENTS}/{start[:2]}/{start[2:]}/{name}"


def show(project: Project, commit: str, path: str) -> str | None:
    """A file of the project as it is in a commit; None if it is not there."""
    try:
        return git(project.root, "show", f"{commit}:./{path}")
    except UserError:
        return None


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


def _same_inputs(project: Project, commit: str, start: str) -> bool:
    if start == project.head:
        return True
    lock = show(project, commit, DVC_FILES[1])
    stages: Any = YAML(typ="safe", pure=True).load(lock or "").get("stages", {}) if lock else {}
    outs = {out["path"] for stage in stages.values() for out in stage.get("outs", [])}
    read = {dep["path"] for stage in stages.values() for dep in stage.get("deps", [])}
    read -= {path for path in read if any(f"{path}/".startswith(f"{out}/") for out in outs)}
    read -= {path for path in read if any(out.startswith(f"{path}/") for out in outs)}
    # Data that DVC tracks have their hash beside them.
    paths = [DVC_FILES[0], *sorted(read - {str(PARAMS_FILE)})]
    paths += [f"{path}.dvc" for path in paths]
    try:
        return not git(project.root, "diff", "--name-only", start, project.head, "--", *paths)
    except UserError:
        return False  # its starting commit is gone

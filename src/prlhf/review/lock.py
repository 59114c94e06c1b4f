"""Whether dvc.lock records a run of the pipeline as it is: without cache, outputs or a run.

`dvc status` needs the outputs, which a fresh clone does not have. Here a dependency that another
stage makes is compared with what dvc.lock records of that stage, and only what Git keeps is hashed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dvc.dvcfile import LOCK_FILE, load_file
from dvc.fs import LocalFileSystem
from dvc_data.hashfile.hash import hash_file
from dvc_data.hashfile.tree import Tree

from prlhf.errors import UserError, UserErrors
from prlhf.review.pipeline import (
    WORKSPACE,
    Value,
    at,
    differs,
    in_project,
    label,
    leaves,
    makers,
    open_project,
    plain,
    shown,
)

if TYPE_CHECKING:
    from dvc.dependency import ParamsDependency
    from dvc.dependency.base import Dependency
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import Stage

MAX_REASONS = 4
"""Reasons shown of one stage; the others are counted."""

MAX_VALUE = 40
"""Characters shown of a value."""


@dataclass(frozen=True)
class Stale:
    """A stage that dvc.lock does not record as it is.

    Attributes:
        stage: Its name.
        reasons: Why, each a phrase.
    """

    stage: str
    reasons: tuple[str, ...]

    @property
    def why(self) -> str:
        """The reasons in one line; many are cut short."""
        more = len(self.reasons) - MAX_REASONS
        shown = [*self.reasons[:MAX_REASONS], *([f"and {more} more"] if more > 0 else [])]
        return "; ".join(shown)

    def __str__(self) -> str:
        return f"{self.stage} is stale: {self.why}"


def check(path: Path = Path()) -> int:
    """Check the lock of the project that `path` is in.

    Returns:
        The number of stages.

    Raises:
        UserErrors: Stages are stale: one line for each, and one that says what to do.
        UserError: DVC cannot read the project.
    """
    with open_project(path) as project, at(project, WORKSPACE, WORKSPACE):
        stale = find(project)
        stages = sum(not stage.is_data_source for stage in project.index.stages)
    if stale:
        known = UserError(
            f"does not record {len(stale)} of {stages} stages as they are",
            where=LOCK_FILE,
            fix="run `dvc repro`, then commit dvc.lock and reports/",
        )
        raise UserErrors([*(UserError(str(one), where=LOCK_FILE) for one in stale), known])
    return stages


def find(project: Repo) -> list[Stale]:
    """The stages that are stale where `project` looks at the moment, in the order of dvc.yaml.

    Stages that are stale only because they follow others are not among them: what they read is
    recorded as it was made.
    """
    stages = [stage for stage in project.index.stages if not stage.is_data_source]
    recorded = {
        path: load_file(project, path).lockfile_contents.get("stages", {})
        for path in {stage.path: None for stage in stages}
    }
    found = []
    for stage in stages:
        if stage.name not in recorded[stage.path]:
            reasons: tuple[str, ...] = ("there is no run of it in dvc.lock",)
        else:
            reasons = tuple(_reasons(project, stage))
        if reasons:
            found.append(Stale(label(stage), reasons))
    known = {(stage.path, stage.name) for stage in stages}
    for path, names in recorded.items():
        place = next(stage for stage in stages if stage.path == path)
        prefix = label(place).removesuffix(place.name)
        gone = [name for name in names if (path, name) not in known]
        found += [
            Stale(f"{prefix}{name}", ("dvc.yaml has no such stage any more",)) for name in gone
        ]
    return found


def _reasons(project: Repo, stage: Stage) -> Iterator[str]:
    if stage.cmd_changed:
        yield "its command has changed"
    if not stage.frozen:
        for parameters in stage.params:
            yield from _parameters(parameters)
        for dependency in filter(plain, stage.deps):
            yield from _dependency(project, dependency)
    for out in stage.outs:
        yield from _output(project, out)


def _parameters(dependency: ParamsDependency) -> Iterator[str]:
    status = dependency.workspace_status()
    if not status:
        return
    [(file, stale)] = status.items()
    if isinstance(stale, str):
        yield f"{file} is missing" if stale == "deleted" else f"dvc.lock has nothing of {file}"
        return
    locked, actual = dependency.hash_info.value, dependency.read_params()
    for key in stale:
        old, new = (leaves({key: side[key]}) if key in side else {} for side in (locked, actual))
        # An emptied section is a key itself: what was in it is gone.
        changed = [name for name in dict.fromkeys([*new, *old]) if differs(old, new, name)]
        for name in changed:
            if name not in new:
                yield f"{name} is gone"
            elif name not in old:
                yield f"{name} is new"
            else:
                yield f"{name} is {_short(new[name])}, not {_short(old[name])}"


def _short(value: Value) -> str:
    text = shown(value)
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 1]}\N{HORIZONTAL ELLIPSIS}"


def _dependency(project: Repo, dependency: Dependency) -> Iterator[str]:
    path = in_project(project, dependency)
    if not dependency.hash_info:
        yield f"dvc.lock has nothing of {path}"
        return
    outs = makers(project, dependency)
    if outs:
        if not _as_made(project, dependency, outs):
            names = ", ".join(dict.fromkeys(label(out.stage) for out in outs))
            yield f"{path} is not what {names} made"
    elif dependency.exists:
        if dependency.changed_checksum():
            yield f"{path} has changed"
    elif not _kept_from_git(project, dependency):
        yield f"{path} is missing"


def _as_made(project: Repo, dependency: Dependency, outs: list[Output]) -> bool:
    """Whether a dependency is recorded as the stages behind it made it, as far as can be told.

    A file inside of an output cannot be told without the cache, nor the content of a directory that
    contains outputs which are directories: of those the number of files and their size count.
    """
    if not all(out.hash_info for out in outs):
        return True  # those stages have no run: they are reported themselves
    if len(outs) == 1 and not dependency.fs.isin(outs[0].fs_path, dependency.fs_path):
        same = outs[0].fs_path == dependency.fs_path
        return not same or outs[0].hash_info == dependency.hash_info
    others = _files_beside(project, dependency, outs)
    # DVC writes a .gitignore beside outputs, which may have come before or after the hash.
    ours = [file for file in others if project.fs.name(file) != ".gitignore"]
    return any(_consists_of(dependency, outs, files) for files in (others, ours))


def _files_beside(project: Repo, directory: Dependency, outs: list[Output]) -> list[str]:
    if not directory.exists:
        return []
    fs = directory.fs
    made = [out.fs_path for out in outs]
    return [
        file
        for file in project.dvcignore.find(fs, directory.fs_path)
        if not any(fs.isin_or_eq(file, path) for path in made)
    ]


def _consists_of(directory: Dependency, outs: list[Output], files: list[str]) -> bool:
    fs = directory.fs
    if any(out.meta.isdir for out in outs):
        count = sum(out.meta.nfiles if out.meta.isdir else 1 for out in outs) + len(files)
        size = sum(out.meta.size for out in outs) + sum(fs.size(file) for file in files)
        return (directory.meta.nfiles, directory.meta.size) == (count, size)
    tree = Tree()
    for out in outs:
        tree.add(fs.relparts(out.fs_path, directory.fs_path), out.meta, out.hash_info)
    for file in files:
        meta, info = hash_file(file, fs, directory.hash_name)
        tree.add(fs.relparts(file, directory.fs_path), meta, info)
    tree.digest()
    return bool(tree.hash_info == directory.hash_info)


def _output(project: Repo, out: Output) -> Iterator[str]:
    path = in_project(project, out)
    if not out.hash_info:
        yield f"dvc.lock has nothing of its output {path}"
    elif out.use_cache or out.protocol != "local":
        return  # a fresh clone does not have it
    elif out.exists:
        if out.changed_checksum():
            yield f"{path} is not what its run wrote"
    elif not _kept_from_git(project, out):
        yield f"{path} is missing"


def _kept_from_git(project: Repo, item: Output) -> bool:
    """Whether a file is no matter of the repository: outside of it, or ignored by Git."""
    if not item.is_in_repo:
        return True
    path = Path(item.fs_path)
    if not isinstance(project.fs, LocalFileSystem):
        path = Path(project.scm.root_dir, *project.fs.parts(item.fs_path)[1:])
    return bool(project.scm.is_ignored(str(path)))

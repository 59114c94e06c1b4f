"""Whether dvc.lock records a run of the pipeline as it is.

`dvc status` needs the outputs, which a fresh clone does not have. Here a dependency that another
stage makes is compared with what dvc.lock records of that stage, and only what Git keeps is hashed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dvc.dependency import ParamsDependency
from dvc.dependency.base import Dependency
from dvc.dvcfile import LOCK_FILE, load_file
from dvc.fs import LocalFileSystem
from dvc.output import Output
from dvc.repo import Repo
from dvc.stage import Stage

from prlhf.infra.errors import UserError, UserErrors
from prlhf.project import pipeline
from prlhf.project.pipeline import WORKSPACE, Contents, clip, shown

MAX_REASONS = 4  # shown of one stage; the others are counted
MAX_VALUE = 40  # characters shown of a value


class Stale(NamedTuple):
    """A stage that dvc.lock does not record as it is, and why, a phrase for each reason."""

    stage: str
    reasons: tuple[str, ...]

    @property
    def why(self) -> str:
        """The reasons in one line; many are cut short."""
        more = len(self.reasons) - MAX_REASONS
        rest = [f"and {more} more"] if more > 0 else []
        return "; ".join([*self.reasons[:MAX_REASONS], *rest])


def check(path: Path = Path()) -> int:
    """Check the lock of the project that `path` is in, and return the number of stages.

    Raises:
        UserErrors: Stages are stale: one line for each, and one that says what to do.
        UserError: DVC cannot read the project.
    """
    with (
        pipeline.open_project(path) as project,
        pipeline.at_revision(project, WORKSPACE, WORKSPACE),
    ):
        stale = find(project)
        stages = sum(not stage.is_data_source for stage in project.index.stages)
    if stale:
        errors = [UserError(f"{one.stage} is stale: {one.why}", where=LOCK_FILE) for one in stale]
        problem = f"does not record {len(stale)} of {stages} stages as they are"
        fix = "run `dvc repro`, then commit dvc.lock and reports/"
        raise UserErrors([*errors, UserError(problem, where=LOCK_FILE, fix=fix)])
    return stages


def find(project: Repo) -> list[Stale]:
    """The stages that are stale where `project` looks at the moment, in the order of dvc.yaml.

    Stages that only follow stale ones are left out: what they read is recorded as it was made.
    """
    stages = [stage for stage in project.index.stages if not stage.is_data_source]
    recorded = {
        path: load_file(project, path).lockfile_contents.get("stages", {})
        for path in {stage.path: None for stage in stages}
    }
    found = []
    known: Contents = {}
    for stage in stages:
        reasons: tuple[str, ...] = ("there is no run of it in dvc.lock",)
        if stage.name in recorded[stage.path]:
            reasons = tuple(_reasons(project, stage, known))
        if reasons:
            found.append(Stale(pipeline.label(stage), reasons))
    for path, names in recorded.items():
        here = [stage for stage in stages if stage.path == path]
        prefix = pipeline.label(here[0]).removesuffix(here[0].name)
        gone = [name for name in names if name not in {stage.name for stage in here}]
        why = ("dvc.yaml has no such stage any more",)
        found += [Stale(f"{prefix}{name}", why) for name in gone]
    return found


def _reasons(project: Repo, stage: Stage, known: Contents) -> Iterator[str]:
    if stage.cmd_changed:
        yield "its command has changed"
    if not stage.frozen:
        for parameters in stage.params:
            yield from _parameters(parameters)
        for dependency in filter(pipeline.plain, stage.deps):
            yield from _dependency(project, dependency, known)
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
        old, new = (
            pipeline.leaves({key: side[key]}) if key in side else {} for side in (locked, actual)
        )
        # An emptied section is a key itself: what was in it is gone.
        for name in pipeline.differing(old, new):
            if name not in new:
                yield f"{name} is gone"
            elif name not in old:
                yield f"{name} is new"
            else:
                now, then = (clip(shown(side[name]), MAX_VALUE) for side in (new, old))
                yield f"{name} is {now}, not {then}"


def _dependency(project: Repo, dependency: Dependency, known: Contents) -> Iterator[str]:
    path = pipeline.in_project(project, dependency)
    if not dependency.hash_info:
        yield f"dvc.lock has nothing of {path}"
    elif outs := pipeline.makers(project, dependency):
        if not _as_made(project, dependency, outs):
            names = ", ".join(dict.fromkeys(pipeline.label(out.stage) for out in outs))
            yield f"{path} is not what {names} made"
    elif dependency.exists:
        if pipeline.content(dependency, known).digest != dependency.hash_info.value:
            yield f"{path} has changed"
    elif not _kept_from_git(project, dependency):
        yield f"{path} is missing"


def _as_made(project: Repo, dependency: Dependency, outs: list[Output]) -> bool:
    """Whether a dependency is recorded as other stages made it, as far as dvc.lock tells."""
    if not all(out.hash_info for out in outs):
        return True  # those stages have no run: they are reported themselves
    fs, made = dependency.fs, [out.fs_path for out in outs]
    if len(outs) == 1 and not fs.isin(outs[0].fs_path, dependency.fs_path):
        same = outs[0].fs_path == dependency.fs_path
        # dvc.lock does not tell the content of a file inside an output: it is taken as made.
        return not same or outs[0].hash_info == dependency.hash_info
    there = project.dvcignore.find(fs, dependency.fs_path) if dependency.exists else ()
    others = [file for file in there if not any(fs.isin_or_eq(file, path) for path in made)]
    # DVC writes a .gitignore beside outputs, which may have come before or after the hash.
    ours = [file for file in others if project.fs.name(file) != ".gitignore"]
    return any(_consists_of(dependency, outs, files) for files in (others, ours))


def _consists_of(directory: Dependency, outs: list[Output], files: list[str]) -> bool:
    fs = directory.fs
    if any(out.meta.isdir for out in outs):  # their files' contents are not in dvc.lock
        count = sum(out.meta.nfiles if out.meta.isdir else 1 for out in outs) + len(files)
        size = sum(out.meta.size for out in outs) + sum(fs.size(file) for file in files)
        return (directory.meta.nfiles, directory.meta.size) == (count, size)
    tree = pipeline.tree_of(fs, directory.fs_path, files, directory.hash_name, outs)
    return bool(tree.hash_info == directory.hash_info)


def _output(project: Repo, out: Output) -> Iterator[str]:
    path = pipeline.in_project(project, out)
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
    """Whether Git does not keep a file: it is ignored, or outside of the repository."""
    if not item.is_in_repo:
        return True
    path = Path(item.fs_path)
    if not isinstance(project.fs, LocalFileSystem):
        path = Path(project.scm.root_dir, *project.fs.parts(item.fs_path)[1:])
    return bool(project.scm.is_ignored(str(path)))

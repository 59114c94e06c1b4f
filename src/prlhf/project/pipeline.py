"""The pipeline as DVC sees it, in the workspace or at a Git revision.

Everything here is read through DVC's own objects, so that matrices, templates, `.dvc` files and
`.dvcignore` mean what they mean to `dvc repro`. Nothing is written, and no output is needed.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dvc.dependency import ParamsDependency
from dvc.dependency.base import Dependency
from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.fs import LocalFileSystem
from dvc.output import Output
from dvc.repo import Repo
from dvc.repo.brancher import switch
from dvc.repo.graph import get_subgraph_of_nodes
from dvc.scm import NoSCM, RevError, SCMError, resolve_rev
from dvc.stage import Stage
from dvc_data.hashfile.build import build
from dvc_data.hashfile.hash import hash_file
from dvc_data.hashfile.tree import Tree

from prlhf.infra.errors import UserError
from prlhf.project.dvc import repository

WORKSPACE = "workspace"  # DVC's name for the files as they are now
Value = str | int | float | bool | list[Any] | dict[str, Any] | None


class Content(NamedTuple):
    """The hash of a file or directory, None if it is absent, and those of a directory's files."""

    digest: str | None
    files: Mapping[str, str]


Contents = dict[tuple[str, str], Content]


@dataclass(frozen=True)
class StageState:
    """What makes a stage stale, at one revision.

    Attributes:
        gpu: Whether `meta.gpu` says that it wants one.
        params: Parameter file -> the keys that it declares; none for the whole file.
        files: Path -> content, of each dependency that no stage makes.
        frozen: Whether DVC leaves it as it is, whatever it reads.
    """

    command: str
    gpu: bool
    params: Mapping[str, tuple[str, ...]]
    files: Mapping[str, Content]
    outs: frozenset[str]
    frozen: bool


@dataclass(frozen=True)
class Snapshot:
    """The pipeline at one revision.

    Attributes:
        stages: Stages by name, matrices expanded, in the order of dvc.yaml.
        followers: Stage -> itself and all that need its results, directly or not.
        params, metrics: File -> dotted key -> value; files that cannot be read are left out.
    """

    stages: Mapping[str, StageState]
    followers: Mapping[str, frozenset[str]]
    params: Mapping[str, Mapping[str, Value]]
    metrics: Mapping[str, Mapping[str, Value]]

    def downstream(self, names: set[str]) -> list[str]:
        """These stages and all that need their results, in order."""
        found = frozenset().union(*(self.followers[name] for name in names))
        return [name for name in self.stages if name in found]


@contextlib.contextmanager
def open_project(path: Path = Path(), fix: str = "run this in a clone") -> Iterator[Repo]:
    """The DVC project that `path` is in. It need not be under Git.

    Raises:
        UserError: There is none; `fix` says what to do about it.
    """
    try:
        project = Repo(str(path))
        _ = project.scm
    except NotDvcRepoError:
        raise UserError("not in a DVC project", where=path.resolve(), fix=fix) from None
    except SCMError:
        project = Repo(str(path), config={"core": {"no_scm": True}})
    with project:
        yield project


def require_git(project: Repo, where: str) -> None:
    """Refuse a project without revisions that can be read.

    Raises:
        UserError: The project is not under Git, nothing was committed yet, Git does not want to
            read it, or DVC is told to do without Git.
    """
    try:
        repository(Path(project.root_dir))
    except UserError as error:
        raise UserError(error.problem, where=where, fix=error.fix) from error
    if isinstance(project.scm, NoSCM):
        fix = "`dvc config --local --unset core.no_scm`"
        raise UserError("DVC is told to do without Git", where=where, fix=fix)


def resolve_revision(project: Repo, name: str, where: str) -> str:
    """The commit that a revision's name stands for; `workspace` stays as it is.

    Raises:
        UserError: There is no such revision.
    """
    if name == WORKSPACE:
        return name
    try:
        return str(resolve_rev(project.scm, name))
    except (RevError, SCMError):
        fix = "`git fetch` brings those of others"
        raise UserError(f"unknown revision {name}", where=where, fix=fix) from None


@contextlib.contextmanager
def at_revision(project: Repo, commit: str, name: str) -> Iterator[None]:
    """Look at the project as it is at a commit.

    Raises:
        UserError: DVC cannot read it there; the message names the revision and the cause.
    """
    try:
        with switch(project, commit):
            yield
    except DvcException as error:
        cause = "" if error.__cause__ is None else str(error.__cause__)
        problem = str(error) if cause in str(error) else f"{error}: {cause}"
        raise UserError(problem, where=None if name == WORKSPACE else name) from error


def snapshot(project: Repo) -> Snapshot:
    """The pipeline where `project` looks at the moment."""
    index = project.index
    stages = [stage for stage in index.stages if not stage.is_data_source]
    # A frozen stage never runs by itself, so nothing has to follow it.
    awake = index.graph.subgraph(stage for stage in index.graph if not stage.frozen)
    known: Contents = {}
    followers = {}
    for stage in stages:
        found = [] if stage.frozen else get_subgraph_of_nodes(awake, [stage], downstream=True)
        followers[label(stage)] = frozenset(map(label, [stage, *found]))
    return Snapshot(
        {label(stage): _state(project, stage, known) for stage in stages},
        followers,
        _shown(project.params.show),
        _shown(project.metrics.show),
    )


def label(stage: Stage) -> str:
    """A stage's name as `dvc repro` takes it at the root of the project."""
    path = str(stage.path_in_repo)
    if stage.is_data_source:
        return path
    return str(stage.name) if path == "dvc.yaml" else f"{path}:{stage.name}"


def in_project(project: Repo, item: Output) -> str:
    """The path of a dependency or an output from the root of the project."""
    inside = item.is_in_repo
    return str(project.fs.relpath(item.fs_path, project.root_dir) if inside else item.def_path)


def makers(project: Repo, dependency: Dependency) -> list[Output]:
    """The outputs that a dependency is, is part of, or consists of."""
    trie = project.index.outs_trie
    key = dependency.fs.parts(dependency.fs_path)
    found = [step.value for step in trie.prefixes(key)]
    if trie.has_subtrie(key):
        found += trie.values(prefix=key)
    return list({id(out): out for out in found}.values())


def plain(dependency: Dependency) -> bool:
    """Whether a dependency is a file or directory of this machine."""
    return type(dependency) is Dependency and dependency.protocol == "local"


def content(dependency: Dependency, known: Contents) -> Content:
    """Hash a file or directory as DVC does, without what `.dvcignore` names.

    `known` keeps what was hashed at the same revision, since stages share dependencies.
    """
    fs, path, name = dependency.fs, dependency.fs_path, dependency.hash_name
    if (path, name) in known:
        return known[path, name]
    if not dependency.exists:
        return Content(None, {})
    ignore = dependency.dvcignore
    if isinstance(fs, LocalFileSystem) or not fs.isdir(path):
        _, _, found = build(dependency.local_cache, path, fs, name, ignore=ignore, dry_run=True)
    else:
        # At a Git revision DVC would also hash the files of a directory that .dvcignore names.
        found = tree_of(fs, path, ignore.find(fs, path), name)
    inside = found if isinstance(found, Tree) else ()
    files = {"/".join(key): info.value for key, _, info in inside}
    return known.setdefault((path, name), Content(found.hash_info.value, files))


def digest_outside(project: Repo, path: str) -> str | None:
    """DVC's hash of a file or directory outside of the project; None if it is absent."""
    if not Path(path).exists():
        return None
    _, _, found = build(project.cache.local, path, LocalFileSystem(), "md5", dry_run=True)
    return str(found.hash_info.value)


def tree_of(
    fs: Any, directory: str, files: Iterable[str], hash_name: str, outs: Iterable[Output] = ()
) -> Tree:
    """DVC's hash of a directory that consists of files and of outputs that are files."""
    tree = Tree()
    for out in outs:
        tree.add(fs.relparts(out.fs_path, directory), out.meta, out.hash_info)
    for file in files:
        tree.add(fs.relparts(file, directory), *hash_file(file, fs, hash_name))
    tree.digest()
    return tree


def leaves(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Value]:
    """Dotted key -> value, for the leaves of nested mappings.

    DVC's own flattening drops empty mappings and nulls, but both make its stages stale.
    """
    found: dict[str, Value] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found


def differing(old: Mapping[str, Value], new: Mapping[str, Value]) -> list[str]:
    """The keys that have another value or exist on one side only; null is a value."""
    return [
        key
        for key in dict.fromkeys([*new, *old])
        if (key in old, old.get(key)) != (key in new, new.get(key))
    ]


def shown(value: Value) -> str:
    """A value as in params.yaml, on one line; text in quotes if it could be taken for another."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except json.JSONDecodeError:
            return value
    return json.dumps(value, ensure_ascii=False, default=str)


def clip(text: str, limit: int) -> str:
    """Text of at most `limit` characters; an ellipsis stands for the rest."""
    return text if len(text) <= limit else f"{text[: limit - 1]}\N{HORIZONTAL ELLIPSIS}"


def _state(project: Repo, stage: Stage, known: Contents) -> StageState:
    params: dict[str, tuple[str, ...]] = {}
    files: dict[str, Content] = {}
    for dependency in [] if stage.frozen else stage.deps:
        path = in_project(project, dependency)
        if isinstance(dependency, ParamsDependency):
            params[path] = tuple(dependency.params)
        elif plain(dependency):
            outs = makers(project, dependency)
            if not outs:
                files[path] = content(dependency, known)
            elif outs[0].stage.is_data_source:
                # `dvc add`: Git has the hash only, in a .dvc file.
                files[path] = Content(outs[0].hash_info.value, {})
    return StageState(
        command=str(stage.cmd),
        gpu=bool((stage.meta or {}).get("gpu")),
        params=params,
        files=files,
        outs=frozenset(in_project(project, out) for out in stage.outs),
        frozen=bool(stage.frozen),
    )


def _shown(show: Any) -> dict[str, Mapping[str, Value]]:
    files = show(on_error="ignore").get("", {}).get("data", {})
    return {
        file: leaves(found["data"])
        for file, found in files.items()
        if isinstance(found.get("data"), Mapping)
    }

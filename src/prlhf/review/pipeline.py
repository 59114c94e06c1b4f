"""The pipeline as DVC sees it, in the workspace or at a Git revision.

Everything here is read through DVC's own objects, so that matrices, templates, `.dvc` files and
`.dvcignore` mean what they mean to `dvc repro`. Nothing is written, no output is needed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvc.dependency import ParamsDependency
from dvc.dependency.base import Dependency
from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.repo import Repo
from dvc.repo.brancher import switch
from dvc.repo.graph import get_subgraph_of_nodes
from dvc.scm import NoSCM, RevError, SCMError, resolve_rev

from prlhf.errors import UserError

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.stage import Stage

WORKSPACE = "workspace"
"""DVC's name for the files as they are now."""

Value = str | int | float | bool | list[Any] | dict[str, Any] | None


@dataclass(frozen=True)
class StageState:
    """A stage at one revision, in what makes it stale.

    Attributes:
        command: What it runs.
        gpu: Whether `meta.gpu` says that it wants one.
        params: Parameter file -> the keys that it declares; none for the whole file.
        files: Each dependency that no stage makes -> its content's hash; None if it is absent.
        outs: What it writes.
        frozen: Whether DVC leaves it as it is, whatever it reads.
    """

    command: str
    gpu: bool
    params: Mapping[str, tuple[str, ...]]
    files: Mapping[str, str | None]
    outs: frozenset[str]
    frozen: bool


@dataclass(frozen=True)
class Snapshot:
    """The pipeline at one revision.

    Attributes:
        stages: Stages by name, matrices expanded, in the order of dvc.yaml.
        followers: Stage -> itself and all that need its results, directly or not.
        params: Parameter file -> dotted key -> value.
        metrics: Metrics file -> dotted key -> figure; files that cannot be read are left out.
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
def open_project(path: Path = Path()) -> Iterator[Repo]:
    """The DVC project that `path` is in, for reading. It need not be under Git.

    Raises:
        UserError: There is none.
    """
    config: dict[str, Any] | None = None
    for attempt in range(2):
        try:
            project = Repo(str(path), config=config)
            _ = project.scm
        except NotDvcRepoError:
            raise UserError(
                "not in a DVC project", where=path.resolve(), fix="run this in a clone"
            ) from None
        except SCMError:
            if attempt:
                raise
            config = {"core": {"no_scm": True}}
        else:
            break
    with project:
        yield project


def require_git(project: Repo, where: str) -> None:
    """Revisions need a history to look them up in.

    Raises:
        UserError: The project is not under Git, or nothing was committed yet.
    """
    if isinstance(project.scm, NoSCM):
        raise UserError("the project is not under Git", where=where, fix="run this in a clone")
    if project.scm.no_commits:
        raise UserError("there is no commit yet", where=where)


def resolve(project: Repo, name: str, where: str) -> str:
    """The commit that a revision's name stands for; `workspace` stays as it is.

    Raises:
        UserError: There is no such revision.
    """
    if name == WORKSPACE:
        return name
    try:
        return str(resolve_rev(project.scm, name))
    except (RevError, SCMError):
        raise UserError(
            f"unknown revision {name}", where=where, fix="`git fetch` brings those of others"
        ) from None


@contextlib.contextmanager
def at(project: Repo, commit: str, name: str) -> Iterator[None]:
    """Look at the project as it is at a commit.

    Raises:
        UserError: DVC cannot read it there; the message says at which revision.
    """
    try:
        with switch(project, commit):
            yield
    except DvcException as error:
        raise UserError(reason(error), where=None if name == WORKSPACE else name) from error


def reason(error: DvcException) -> str:
    """What DVC found wrong, in one line: with the cause, if that says more."""
    parts = [str(error)]
    if error.__cause__ is not None and str(error.__cause__) not in parts[0]:
        parts.append(str(error.__cause__))
    return " ".join(": ".join(parts).split())


def snapshot(project: Repo) -> Snapshot:
    """The pipeline where `project` looks at the moment."""
    index = project.index
    stages = [stage for stage in index.stages if not stage.is_data_source]
    # A frozen stage never runs by itself, so nothing has to follow it.
    awake = index.graph.subgraph(stage for stage in index.graph if not stage.frozen)
    return Snapshot(
        {label(stage): _state(project, stage) for stage in stages},
        {label(stage): _followers(awake, stage) for stage in stages},
        {file: leaves(data) for file, data in _shown(project.params.show).items()},
        {file: leaves(data) for file, data in _shown(project.metrics.show).items()},
    )


def label(stage: Stage) -> str:
    """A stage's name as `dvc repro` takes it at the root of the project."""
    path = stage.path_in_repo
    if stage.is_data_source:
        return str(path)
    return str(stage.name if path == "dvc.yaml" else f"{path}:{stage.name}")


def in_project(project: Repo, item: Output) -> str:
    """The path of a dependency or an output from the root of the project."""
    if not item.is_in_repo:
        return str(item.def_path)
    return str(project.fs.relpath(item.fs_path, project.root_dir))


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


def leaves(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Value]:
    """Dotted key -> value, for all keys of nested mappings that have no further ones.

    DVC's own flattening drops empty mappings and takes a null for an absent key, but its stages
    become stale by both.
    """
    found: dict[str, Value] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found


def differs(old: Mapping[str, Value], new: Mapping[str, Value], key: str) -> bool:
    """Whether a key has another value, or exists on one side only; null is a value."""
    return (key in old, old.get(key)) != (key in new, new.get(key))


def shown(value: Value) -> str:
    """A value as params.yaml would have it, on one line; text in quotes if it could be another."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False, default=str)
    try:
        json.loads(value)
    except json.JSONDecodeError:
        return value
    return json.dumps(value, ensure_ascii=False)


def _followers(graph: Any, stage: Stage) -> frozenset[str]:
    if stage not in graph:
        return frozenset({label(stage)})
    return frozenset(map(label, get_subgraph_of_nodes(graph, [stage], downstream=True)))


def _state(project: Repo, stage: Stage) -> StageState:
    params: dict[str, tuple[str, ...]] = {}
    files: dict[str, str | None] = {}
    for dependency in [] if stage.frozen else stage.deps:
        path = in_project(project, dependency)
        if isinstance(dependency, ParamsDependency):
            params[path] = tuple(dependency.params)
        elif plain(dependency):
            outs = makers(project, dependency)
            if not outs:
                files[path] = dependency.get_hash().value if dependency.exists else None
            elif outs[0].stage.is_data_source:
                # `dvc add`: Git has the hash only, in a .dvc file.
                files[path] = outs[0].hash_info.value
    return StageState(
        command=str(stage.cmd),
        gpu=bool((stage.meta or {}).get("gpu")),
        params=params,
        files=files,
        outs=frozenset(in_project(project, out) for out in stage.outs),
        frozen=bool(stage.frozen),
    )


def _shown(show: Any) -> dict[str, Mapping[Any, Any]]:
    files = show(on_error="ignore").get("", {}).get("data", {})
    return {
        file: found["data"]
        for file, found in files.items()
        if isinstance(found.get("data"), Mapping)
    }

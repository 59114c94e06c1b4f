"""The stage graph and what of it is out of date, asked of DVC: once, in a process of its own.

python graph.py         prints JSON; the project is the one around the working directory
"""

from __future__ import annotations

import difflib
import json
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prlhf.infra.errors import UserError, UserErrors
from prlhf.infra.io import require_place
from prlhf.project.dvc import failure


@dataclass(frozen=True)
class Node:
    """A stage of the pipeline, or a file under DVC's control (`data.csv.dvc`).

    Attributes:
        name: As DVC takes it on its command line, in the project's root.
        needs: The names of the stages whose outputs it reads.
        stale: DVC says that it, or what it reads or wrote, has changed since it last ran.
        outs: What it writes, relative to the root.
        desc: What dvc.yaml says of it.
        meta: What dvc.yaml sets for whoever runs it.
    """

    name: str
    needs: tuple[str, ...]
    stale: bool
    outs: tuple[str, ...] = ()
    desc: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """A DVC project.

    Attributes:
        root: Its directory.
        cache: DVC's cache.
        metrics: Metric files, relative to the root.
        uncached: Outputs that are Git's to keep, not DVC's, relative to the root.
        nodes: Stages by name, those that others need before them.
    """

    root: Path
    cache: Path
    metrics: tuple[str, ...]
    uncached: tuple[str, ...]
    nodes: Mapping[str, Node]


@dataclass(frozen=True)
class Settings:
    """What `meta` of a stage in dvc.yaml may set for whoever runs it.

    Attributes:
        gpu: It uses the GPU.
        retries: How often it is tried again when it fails.
        retry_delay: Seconds between two tries.
        timeout: Seconds that it may take; None for the run's default.
    """

    gpu: bool = False
    retries: int = 0
    retry_delay: float = 10.0
    timeout: float | None = None


def read(directory: Path, environment: Mapping[str, str]) -> Graph:
    """Ask DVC for the graph of the project in a directory.

    Raises:
        UserError: There is no project, DVC cannot read it, or could not keep results in it.
    """
    result = subprocess.run(
        [sys.executable, "-P", __file__],
        cwd=directory,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        problem = failure(result.stderr.splitlines(), status=result.returncode)
        raise UserError(problem, where=directory)
    found = json.loads(result.stdout)
    nodes = [
        Node(**node | {"needs": tuple(node["needs"]), "outs": tuple(node["outs"])})
        for node in found["nodes"]
    ]
    root = Path(found["root"])
    require_place(root, sorted({Path(out).parent for node in nodes for out in node.outs}))
    return Graph(
        root=root,
        cache=Path(found["cache"]),
        metrics=tuple(found["metrics"]),
        uncached=tuple(found["uncached"]),
        nodes={node.name: node for node in nodes},
    )


def select(graph: Graph, targets: Iterable[str] | None) -> list[Node]:
    """The targets with all that they need, in an order to run them in.

    Args:
        graph: The project.
        targets: Names of stages; `train` stands for all `train@...`. None or nothing: all.

    Raises:
        UserErrors: There are no such stages.
    """
    wanted: set[str] = set()
    faults = []
    for target in targets or graph.nodes:
        found = _named(target, graph.nodes)
        if not found:
            names = {name.partition("@")[0] for name in graph.nodes} | set(graph.nodes)
            close = difflib.get_close_matches(target, sorted(names), n=1)
            fix = f"did you mean {close[0]}?" if close else f"dvc.yaml has {', '.join(graph.nodes)}"
            faults.append(UserError("no such stage", where=target, fix=fix))
        wanted |= found
    if faults:
        raise UserErrors(faults)
    for node in reversed(list(graph.nodes.values())):
        if node.name in wanted:
            wanted |= set(node.needs)
    return [node for node in graph.nodes.values() if node.name in wanted]


def settings(node: Node, path: str = "dvc.yaml") -> Settings:
    """What a stage's `meta` sets; keys of others' are left alone.

    Raises:
        UserErrors: A value is of a wrong type or out of range.
    """
    checks = {
        "gpu": (bool, lambda value: True, "true or false"),
        "retries": (int, lambda value: value >= 0, "a whole number (at least 0)"),
        "retry_delay": (float, lambda value: value >= 0, "a number of seconds (at least 0)"),
        "timeout": (float, lambda value: value > 0, "a number of seconds (above 0)"),
    }
    found: dict[str, Any] = {}
    faults = []
    for key, (kind, good, wanted) in checks.items():
        if node.meta.get(key) is None:
            continue
        value = node.meta[key]
        fits = isinstance(value, bool) if kind is bool else type(value) in {int, kind}
        if fits and good(value):
            found[key] = value
        else:
            where = f"{path}: stages.{node.name.partition('@')[0]}.meta.{key}"
            faults.append(UserError(f"must be {wanted}, not {value!r}", where=where))
    if faults:
        raise UserErrors(faults)
    return Settings(**found)


def _named(target: str, names: Collection[str]) -> set[str]:
    if target in names:
        return {target}
    return {name for name in names if name.startswith(f"{target}@")}


def _ask() -> dict[str, Any]:
    """The graph and the status of the project around the working directory."""
    import os

    from dvc.repo import Repo
    from networkx import lexicographical_topological_sort

    os.chdir(Repo.find_root())
    with Repo(_wait_for_lock=True) as repo:
        # An edge leads from a stage to one that it needs. Names depend on the working directory.
        graph = repo.index.graph
        order = {stage: position for position, stage in enumerate(repo.index.stages)}
        stale = repo.status()
        sort = lexicographical_topological_sort(graph.reverse(), key=lambda s: order[s])
        nodes = [
            Node(
                name=stage.addressing,
                needs=tuple(sorted(other.addressing for other in graph.successors(stage))),
                stale=stage.addressing in stale,
                outs=tuple(os.path.relpath(out.fs_path, repo.root_dir) for out in stage.outs),
                desc=stage.desc or "",
                meta=stage.meta or {},
            )
            for stage in sort
        ]
        outs = {os.path.relpath(out.fs_path, repo.root_dir): out for out in repo.index.outs}
        return {
            "root": repo.root_dir,
            "cache": repo.cache.local_cache_dir,
            "metrics": sorted(name for name, out in outs.items() if out.metric),
            "uncached": sorted(name for name, out in outs.items() if not out.use_cache),
            "nodes": [asdict(node) for node in nodes],
        }


def _main() -> int:
    from dvc.exceptions import DvcException

    try:
        found = _ask()
    except DvcException as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    sys.stdout.write(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(_main())

"""A run with other parameters has a workspace of its own, and becomes a DVC experiment.

The user's files are only read. What runs is a Git clone with the files as they are now, committed
or not, and DVC's cache of the project, in `.dvc/tmp/flows/<key>`. A run with the same changes finds
the same workspace again, and goes on in it after a failure or a kill; a success removes it, since
everything is then in the experiment and in the cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.process import Commands
from prlhf.data.ids import content_hash
from prlhf.infra.errors import UserError
from prlhf.infra.io import write_text
from prlhf.params.loading import overridden
from prlhf.project.dvc import DVC, check_out, configure, environment, failure, git, repository

PARAMS = "params.yaml"
PLACE = Path(".dvc/tmp/flows")


@dataclass(frozen=True)
class Workspace:
    """A copy of a project to run in.

    Attributes:
        root: The project.
        clone: The Git clone.
        path: The project in the clone.
        variables: The environment for commands in it.
    """

    root: Path
    clone: Path
    path: Path
    variables: Mapping[str, str]


@contextlib.contextmanager
def workspace(
    root: Path,
    cache: Path,
    changes: Mapping[str, Any],
    commands: Commands,
    on_line: Callable[[str], None],
) -> Iterator[Workspace]:
    """Make a workspace with some parameters changed. It stays; `remove` removes it.

    Args:
        root: The project.
        cache: Its DVC cache.
        changes: Dotted key -> value.
        commands: What ends the processes.
        on_line: Called with what DVC says.

    Raises:
        UserError: The changes are wrong, Git has no commit to start from, or a run with the same
            changes is going on.
    """
    text = overridden(root / PARAMS, changes)
    top, head = _git_state(root)
    key = content_hash(json.dumps(changes, sort_keys=True))
    clone = root / PLACE / key
    clone.parent.mkdir(parents=True, exist_ok=True)
    # The system drops the lock with the process that holds it, however that ends.
    with clone.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "a run with the same changes is going on", where=clone, fix="wait for its end"
            ) from None
        made = Workspace(
            root, clone, clone / root.relative_to(top), environment(clone / root.relative_to(top))
        )
        _populate(made, top, head)
        write_text(made.path / PARAMS, text)
        configure(made.root, made.path, cache)
        _dvc(made, commands, on_line, "checkout", "--quiet", "--force", "--allow-missing")
        yield made


def record(
    made: Workspace,
    name: str,
    message: str,
    stages: Sequence[str],
    uncached: Sequence[str],
    commands: Commands,
    on_line: Callable[[str], None],
) -> str:
    """Save a workspace as a DVC experiment of the project; return the experiment's name.

    Args:
        made: The workspace.
        name: The experiment's name; what Git does not take becomes hyphens.
        message: Of the experiment's commit.
        stages: Those that the run brought up to date. Others' results may be missing, in a new
            clone, or made with other parameters: dvc.lock goes on saying of these what it said.
        uncached: Outputs that the commit has to hold, since DVC's cache does not.
        commands: What ends the processes.
        on_line: Called with what DVC says.

    Raises:
        UserError: DVC or Git failed.
    """
    name = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")
    also = [f"--include-untracked={path}" for path in uncached if (made.path / path).exists()]
    how = ("--quiet", "--force", "--name", name, "--message", message, *also)
    _dvc(made, commands, on_line, "exp", "save", *how, "--", *stages)
    refs = git(made.clone, "for-each-ref", "--format=%(refname)", "refs/exps").split()
    found = [ref for ref in refs if ref.rpartition("/")[2] == name and "/exec/" not in ref]
    if not found:
        raise UserError(f"dvc exp save made no experiment {name}", where=made.path)
    git(made.root, "fetch", "--quiet", "--no-tags", str(made.clone), f"+{found[0]}:{found[0]}")
    return name


def remove(made: Workspace) -> None:
    """Delete a workspace."""
    shutil.rmtree(made.clone, ignore_errors=True)


def _dvc(
    made: Workspace, commands: Commands, on_line: Callable[[str], None], *arguments: str
) -> None:
    """Run DVC in a workspace; `UserError` with what it says if it fails."""
    lines: list[str] = []

    def keep(line: str) -> None:
        lines.append(line)
        on_line(line)

    status = commands.run(
        [*DVC, *arguments], cwd=made.path, environment=made.variables, on_line=keep
    )
    if status:
        called = " ".join(["dvc", *itertools.takewhile(str.isalpha, arguments)])
        raise UserError(f"{called} failed: {failure(lines, status=status)}", where=made.path)


def _git_state(root: Path) -> tuple[Path, str]:
    try:
        return repository(root)
    except UserError as error:
        raise UserError(
            "a run with other parameters becomes a DVC experiment, which starts from a Git commit: "
            f"{error.problem}",
            where=root,
            fix=error.fix or "commit first, or change params.yaml and run without overrides",
        ) from error


def _populate(made: Workspace, top: Path, head: str) -> None:
    """Bring the clone to the files of the project as they are, committed or not."""
    check_out(top, made.clone, head)
    changed = git(top, "diff", "--name-only", "--no-renames", "-z", "HEAD")
    added = git(top, "ls-files", "--others", "--exclude-standard", "-z")
    for name in filter(None, f"{changed}{added}".split("\0")):
        source, target = top / name, made.clone / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
        elif not source.exists():
            target.unlink(missing_ok=True)

"""Versions of the data: what a Git revision, or the workspace, holds of them.

Which data a revision has is asked of DVC, and their content is taken from its cache, never from a
remote. The data of a version are what the pipeline made of them: `data/ingested`, `data/prepared`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from prlhf.errors import UserError

if TYPE_CHECKING:
    from dvc.dependency import Dependency
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import Stage
    from git import Commit

WORKSPACE: Final = "workspace"
"""The name of what is on disk, as DVC calls it."""

INGESTED: Final = "data/ingested"
PREPARED: Final = "data/prepared"

Files = Callable[[str], "IO[bytes] | None"]
"""Opens a file of a directory by its name; gives None if it is not at hand."""


@dataclass(frozen=True)
class Version:
    """What DVC knows about the data of a revision.

    Attributes:
        hashes: Path -> hash, of the sources that have a `.dvc` file, and of `INGESTED` and
            `PREPARED` as far as the revision has them.
        stale: What the stages have not caught up with, in words; empty if they have.
        ingested: The files of `INGESTED`.
        prepared: The files of `PREPARED`.
    """

    hashes: dict[str, str]
    stale: tuple[str, ...]
    ingested: Files
    prepared: Files


NOTHING: Final = Version({}, (), lambda _: None, lambda _: None)
"""A revision without data."""


@contextlib.contextmanager
def repository() -> Iterator[Repo]:
    """The DVC repository around the current directory.

    Raises:
        UserError: There is none, or it is in no Git repository.
    """
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo
    from dvc.scm import NoSCM, SCMError

    try:
        repo = Repo()
        scm = repo.scm
    except NotDvcRepoError as error:
        raise UserError(
            "this is no DVC repository", where=Path.cwd(), fix="go to the project's directory"
        ) from error
    except SCMError:
        scm = None
    if scm is None or isinstance(scm, NoSCM):
        raise UserError(
            "this is no Git repository, so there are no versions",
            where=Path.cwd(),
            fix="`git init`, then commit dvc.yaml, dvc.lock and *.dvc",
        )
    with repo:
        yield repo


def look(repo: Repo, name: str) -> Version:
    """What a revision has; `NOTHING` if it has no pipeline that can be read.

    Args:
        repo: See `repository`.
        name: A Git revision, or `WORKSPACE`.

    Raises:
        UserError: There is no such revision.
    """
    from dvc.exceptions import DvcException
    from dvc.scm import RevError

    try:
        with repo.switch(name):
            pipeline = repo.fs.join(repo.root_dir, "dvc.yaml")
            ingest = repo.stage.load_one(pipeline, "ingest")
            validate = repo.stage.load_one(pipeline, "validate")
            sources = list(_sources(repo, ingest))
            ingested, prepared = _named(ingest.outs, INGESTED), _named(validate.outs, PREPARED)
            files = [_opener(out, name == WORKSPACE) for out in (ingested, prepared)]
    except RevError as error:
        raise UserError(
            "no such revision", where=name, fix="`git log` and `git tag` list them"
        ) from error
    except DvcException:
        return NOTHING
    hashes = {dep.def_path: _hash(out) for dep, out in sources}
    hashes |= {INGESTED: _hash(ingested), PREPARED: _hash(prepared)}
    stale = [
        f"{dep.def_path} is not ingested as it is"
        for dep, out in sources
        if _hash(dep) != _hash(out)
    ]
    if _hash(_named(validate.deps, INGESTED)) != _hash(ingested):
        stale.append(f"{INGESTED} is not validated as it is")
    return Version(
        {path: value for path, value in hashes.items() if value is not None}, tuple(stale), *files
    )


def commits(repo: Repo) -> Iterator[Commit]:
    """Commits up to HEAD that may have changed the data of a version, newest first.

    Along first parents, so that each can be compared with the next: a merge stands for its branch.

    Raises:
        UserError: There is no commit.
    """
    git = repo.scm.gitpython.repo
    if not git.head.is_valid():
        raise UserError(
            "has no commit, so there are no versions",
            where=repo.root_dir,
            fix="commit dvc.yaml, dvc.lock and *.dvc",
        )
    root = Path(repo.root_dir).resolve().relative_to(Path(repo.scm.root_dir).resolve())
    names = [(root / name).as_posix() for name in ("dvc.lock", "dvc.yaml", "**/*.dvc")]
    yield from git.iter_commits(
        "HEAD", paths=[f":(top,glob){name}" for name in names], first_parent=True
    )


def tags(repo: Repo) -> dict[str, str]:
    """Commit -> its tags."""
    found: dict[str, str] = {}
    for tag in sorted(repo.scm.gitpython.repo.tags, key=lambda tag: tag.name):
        with contextlib.suppress(ValueError):  # a tag of something that is no commit
            sha = tag.commit.hexsha
            found[sha] = f"{found[sha]}, {tag.name}" if sha in found else tag.name
    return found


def _named(entries: list[Output], name: str) -> Output | None:
    return next((entry for entry in entries if entry.def_path == name), None)


def _hash(entry: Output | None) -> str | None:
    return entry.hash_info.value if entry is not None and entry.hash_info else None


def _sources(repo: Repo, ingest: Stage) -> Iterator[tuple[Dependency, Output]]:
    """Each dependency that has a `.dvc` file of its own, as the stage read it and as that says."""
    for dep in ingest.deps:
        file = f"{dep.fs_path}.dvc"
        if repo.fs.exists(file):
            yield dep, repo.stage.load_one(file).outs[0]


def _opener(out: Output | None, on_disk: bool) -> Files:
    """How to open the files of a directory: on disk if wanted and there, else in DVC's cache.

    To be called while the revision is switched to: afterwards DVC takes the output for foreign.
    """
    if out is None:
        return lambda name: None
    directory, listing, cache = Path(out.fs_path), out.get_obj(), out.cache

    def open_file(name: str) -> IO[bytes] | None:
        if on_disk and (directory / name).exists():
            return (directory / name).open("rb")
        kept = None if listing is None else listing.get_obj(cache, (name,))
        if kept is None or not kept.fs.exists(kept.path):
            return None
        file: IO[bytes] = kept.fs.open(kept.path, "rb")
        return file

    return open_file

"""Versions of the data: what a Git revision, or the workspace, holds of them, and what changed.

DVC knows which data a revision has; their content is taken from its cache, never from a remote. The
data of a version are what the pipeline made of them: `data/ingested` and `data/prepared`.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import pandas as pd
from dvc.exceptions import DvcException
from dvc.output import Output
from dvc.repo import Repo

from prlhf.data.identity import as_column, normal_ids
from prlhf.infra.errors import UserError
from prlhf.project.pipeline import WORKSPACE, open_project, require_git, resolve_revision
from prlhf.project.review_page import table

COMMAND: Final = "prlhf data log"
INGESTED: Final = "data/ingested"
PREPARED: Final = "data/prepared"

FETCH: Final = "dvc fetch --all-commits ingest validate"  # brings earlier versions into the cache
MAX_NAMES: Final = 5  # users named of those who are new, and of those who are gone

# The columns that identify a row, wherever in the source it stands.
_CONTENT: Final = ("user_id", "prompt", "chosen", "rejected", "user_text", "weight", "group")
_Files = Callable[[str], IO[bytes] | None]  # opens a directory's file by name; None if not at hand


@dataclass(frozen=True)
class Version:
    """What DVC knows about the data of a revision.

    Attributes:
        hashes: Path -> hash, of the sources that have a `.dvc` file, and of `INGESTED` and
            `PREPARED` as far as the revision has them.
        stale: What the stages have not caught up with, in words; empty if they have.
        ingested, prepared: The files of `INGESTED` and `PREPARED`.
    """

    hashes: dict[str, str]
    stale: tuple[str, ...]
    ingested: _Files
    prepared: _Files


_NOTHING: Final = Version({}, (), lambda _: None, lambda _: None)


@dataclass(frozen=True)
class Counts:
    """A version in figures; None where the files are not there, or not in the cache.

    `quarantined` is reason -> rows, without reasons that have none; `splits` is split -> pairs.
    """

    rows: int | None
    users: int | None
    quarantined: dict[str, int] | None
    splits: dict[str, int] | None


@dataclass(frozen=True)
class DataChanges:
    """Two versions and what lies between them.

    Attributes:
        added, removed: Rows that one has more often than the other, repetitions counted.
        new_users, gone_users: Users whom only one of them has, in any spelling, sorted.
        stale: What the stages have not caught up with, each with its version.
    """

    names: tuple[str, str]
    before: Counts
    after: Counts
    added: int
    removed: int
    new_users: tuple[str, ...]
    gone_users: tuple[str, ...]
    stale: tuple[str, ...]


@dataclass(frozen=True)
class HistoryEntry:
    """A version in the history.

    Attributes:
        version: The abbreviated commit, or `workspace`.
        tag, date, subject: The commit's tags, its day (ISO), and the first line of its message.
        changed: Paths of data that differ from the version before.
        missing: It has ingested data, but the cache lacks them.
    """

    version: str
    tag: str | None
    date: str | None
    subject: str | None
    changed: tuple[str, ...]
    stale: tuple[str, ...]
    counts: Counts
    missing: bool


@dataclass(frozen=True)
class History:
    """Versions, newest first, and whether there are older ones."""

    entries: tuple[HistoryEntry, ...]
    more: bool


def compare(first: str, second: str = WORKSPACE) -> DataChanges:
    """What changed from one revision to another; `workspace` names what is on disk.

    Raises:
        UserError: There is no DVC or Git repository, no such revision, no data in it, or they are
            not in the cache.
    """
    names = (first, second)
    with open_project() as repo:
        require_git(repo, COMMAND)
        found = [_look(repo, resolve_revision(repo, name, COMMAND)) for name in names]
        both = list(zip(names, found, strict=True))
        tables = [_required(name, version) for name, version in both]
        counts = [_counts(version, rows) for version, rows in zip(found, tables, strict=True)]
    # Rows are compared by content: one that only moved is neither new nor gone.
    hashes = [
        pd.util.hash_pandas_object(rows[list(_CONTENT)], index=False).value_counts(sort=False)
        for rows in tables
    ]
    difference = hashes[1].sub(hashes[0], fill_value=0)
    users = [_people(rows) for rows in tables]
    return DataChanges(
        names=names,
        before=counts[0],
        after=counts[1],
        added=int(difference.clip(lower=0).sum()),
        removed=int(-difference.clip(upper=0).sum()),
        new_users=tuple(sorted(users[1][one] for one in users[1].keys() - users[0].keys())),
        gone_users=tuple(sorted(users[0][one] for one in users[0].keys() - users[1].keys())),
        stale=tuple(f"{name}: {what}" for name, it in both for what in it.stale),
    )


def history(number: int) -> History:
    """The newest `number` versions up to HEAD, and the workspace where it differs from them.

    A version is a commit whose data differ from those of the one before.

    Raises:
        UserError: There is no DVC or Git repository, or no commit.
    """
    entries: list[HistoryEntry] = []
    with open_project() as repo:
        require_git(repo, COMMAND)
        tags = _tags(repo)
        newer_commit, newer = None, _look(repo, WORKSPACE)
        for commit in itertools.chain(_commits(repo), [None]):
            older = _NOTHING if commit is None else _look(repo, commit.hexsha)
            paths = sorted(newer.hashes.keys() | older.hashes.keys())
            changed = tuple(p for p in paths if newer.hashes.get(p) != older.hashes.get(p))
            if changed and len(entries) == number:
                return History(tuple(entries), more=True)
            if changed:
                entries.append(_entry(newer_commit, newer, changed, tags))
            newer_commit, newer = commit, older
    return History(tuple(entries), more=False)


def changes_text(changes: DataChanges) -> str:
    """Two versions side by side in Markdown, with the users who came and went, and warnings."""
    before, after = changes.before, changes.after
    users_moved = _moved(len(changes.new_users), len(changes.gone_users))
    rows = [
        ["rows", _number(before.rows), _number(after.rows), _moved(changes.added, changes.removed)],
        ["users", _number(before.users), _number(after.users), users_moved],
        _compared("quarantined", _total(before.quarantined), _total(after.quarantined)),
        *_parts("quarantined: ", before.quarantined, after.quarantined),
        *_parts("pairs: ", before.splits, after.splits),
    ]
    parts = [table(["", *changes.names, "change"], rows)]
    for what, users in (("new", changes.new_users), ("gone", changes.gone_users)):
        if users:
            more = len(users) - MAX_NAMES
            names = ", ".join(users[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
            parts.append(f"{what} users: {names}")
    parts += [f"mind: {what} (`dvc repro validate`)" for what in changes.stale]
    return "\n\n".join(parts)


def history_text(found: History) -> str:
    """A row of a Markdown table for each version, newest first."""
    if not found.entries:
        return "no commit has data yet (`dvc repro validate`, then commit dvc.lock)"
    rows = [
        [
            entry.version + (f" ({entry.tag})" if entry.tag else ""),
            entry.date or "",
            "not in the cache" if entry.missing else _number(entry.counts.rows),
            _number(entry.counts.users),
            _number(_total(entry.counts.quarantined)),
            ", ".join(entry.changed),
            entry.subject or "",
        ]
        for entry in found.entries
    ]
    head = ["version", "date", "rows", "users", "quarantined", "changed", "commit"]
    parts = [table(head, rows)]
    if any(entry.missing for entry in found.entries):
        parts.append(f"not in the cache: `{FETCH}` gets them, from a remote that has them")
    parts += [f"mind: {entry.version}: {what}" for entry in found.entries for what in entry.stale]
    if found.more:
        parts.append("older versions: --number")
    return "\n\n".join(parts)


def _look(repo: Repo, commit: str) -> Version:
    """What a commit, or the workspace, has; nothing if its pipeline cannot be read."""
    try:
        with repo.switch(commit):
            pipeline = repo.fs.join(repo.root_dir, "dvc.yaml")
            ingest = repo.stage.load_one(pipeline, "ingest")
            validate = repo.stage.load_one(pipeline, "validate")
            # Dependencies that have a `.dvc` file: as the stage read them, and as that file says.
            tracked = [(dep, f"{dep.fs_path}.dvc") for dep in ingest.deps]
            sources = [
                (dep, repo.stage.load_one(file).outs[0])
                for dep, file in tracked
                if repo.fs.exists(file)
            ]
            ingested, prepared = _named(ingest.outs, INGESTED), _named(validate.outs, PREPARED)
            files = [_opener(out, commit == WORKSPACE) for out in (ingested, prepared)]
    except DvcException:
        return _NOTHING
    hashes = {dep.def_path: _hash(out) for dep, out in sources}
    hashes |= {INGESTED: _hash(ingested), PREPARED: _hash(prepared)}
    known = {path: value for path, value in hashes.items() if value is not None}
    behind = [dep.def_path for dep, out in sources if _hash(dep) != _hash(out)]
    stale = [f"{path} is not ingested as it is" for path in behind]
    if _hash(_named(validate.deps, INGESTED)) != _hash(ingested):
        stale.append(f"{INGESTED} is not validated as it is")
    return Version(known, tuple(stale), *files)


def _named(entries: list[Output], name: str) -> Output | None:
    return next((entry for entry in entries if entry.def_path == name), None)


def _hash(entry: Output | None) -> str | None:
    return entry.hash_info.value if entry is not None and entry.hash_info else None


def _opener(out: Output | None, on_disk: bool) -> _Files:
    """How to open the files of a directory: on disk if wanted and there, else in DVC's cache."""
    if out is None:
        return lambda name: None
    # DVC finds this only while the revision is switched to.
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


def _commits(repo: Repo) -> Iterator[Any]:
    """First parents from HEAD that may have changed the data; a merge stands for its branch."""
    root = Path(repo.root_dir).resolve().relative_to(Path(repo.scm.root_dir).resolve())
    names = [(root / name).as_posix() for name in ("dvc.lock", "dvc.yaml", "**/*.dvc")]
    yield from repo.scm.gitpython.repo.iter_commits(
        "HEAD", paths=[f":(top,glob){name}" for name in names], first_parent=True
    )


def _tags(repo: Repo) -> dict[str, str]:
    """Commit -> its tags."""
    found: dict[str, str] = {}
    for tag in sorted(repo.scm.gitpython.repo.tags, key=lambda tag: tag.name):
        with contextlib.suppress(ValueError):  # a tag of something that is no commit
            sha = tag.commit.hexsha
            found[sha] = f"{found[sha]}, {tag.name}" if sha in found else tag.name
    return found


def _entry(
    commit: Any, version: Version, changed: tuple[str, ...], tags: Mapping[str, str]
) -> HistoryEntry:
    counts = _counts(version, _read(version.ingested, "rows.parquet", ["user_id"]))
    missing = counts.rows is None and INGESTED in version.hashes
    what = (changed, version.stale, counts, missing)
    if commit is None:
        return HistoryEntry(WORKSPACE, None, None, None, *what)
    sha, date = commit.hexsha, commit.committed_datetime.date().isoformat()
    return HistoryEntry(sha[:7], tags.get(sha), date, str(commit.summary), *what)


def _required(name: str, version: Version) -> pd.DataFrame:
    rows = _read(version.ingested, "rows.parquet", _CONTENT)
    if rows is not None:
        return rows
    if INGESTED in version.hashes:
        raise UserError("its data are not in the cache", where=name, fix=f"`{FETCH}`")
    fix = "`dvc repro validate`, then commit dvc.lock"
    raise UserError("has no ingested data", where=name, fix=fix)


def _counts(version: Version, rows: pd.DataFrame | None) -> Counts:
    faulty = _read(version.prepared, "quarantine.parquet", ["reason"])
    quarantined = None
    if faulty is not None:
        quarantined = {str(why): int(n) for why, n in faulty["reason"].value_counts().items()}
    with version.prepared("dataset.json") or contextlib.nullcontext() as file:
        splits = None if file is None else json.load(file)["splits"]
    users = None if rows is None else len(_people(rows))
    return Counts(None if rows is None else len(rows), users, quarantined, splits)


def _people(rows: pd.DataFrame) -> dict[str, str]:
    """Users by what their spellings share, each in the most frequent one."""
    spellings = as_column(rows["user_id"].value_counts().index)
    rarest_first = zip(
        normal_ids(spellings).to_pylist()[::-1], spellings.to_pylist()[::-1], strict=True
    )
    return dict(rarest_first)


def _read(files: _Files, name: str, columns: Sequence[str]) -> pd.DataFrame | None:
    with files(name) or contextlib.nullcontext() as file:
        return None if file is None else pd.read_parquet(file, columns=list(columns))


def _number(count: int | None) -> str:
    return "-" if count is None else str(count)


def _total(counts: Mapping[str, int] | None) -> int | None:
    return None if counts is None else sum(counts.values())


def _moved(more: int, fewer: int) -> str:
    return " ".join([*([f"+{more}"] if more else []), *([f"-{fewer}"] if fewer else [])]) or "0"


def _compared(label: str, before: int | None, after: int | None) -> list[str]:
    change = "-" if before is None or after is None else f"{after - before:+d}"
    return [label, _number(before), _number(after), "0" if change == "+0" else change]


def _parts(
    prefix: str, before: Mapping[str, int] | None, after: Mapping[str, int] | None
) -> list[list[str]]:
    names = dict.fromkeys([*(before or {}), *(after or {})])
    sides = [[None if side is None else side.get(n, 0) for n in names] for side in (before, after)]
    return [_compared(f"{prefix}{name}", *pair) for name, *pair in zip(names, *sides, strict=True)]

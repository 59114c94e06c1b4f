"""What changed between two versions of the data, and the versions there are."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from prlhf.data import versions
from prlhf.data.versions import WORKSPACE, Files, Version
from prlhf.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from git import Commit

FETCH: Final = "dvc fetch --all-commits ingest validate"
"""What brings earlier versions into the cache."""

_CONTENT: Final = ("user_id", "prompt", "chosen", "rejected", "user_text", "weight", "group")
"""The columns that make a row what it is, wherever in the source it stands."""


@dataclass(frozen=True)
class Counts:
    """A version in figures. None: the files are not there, or not in the cache.

    Attributes:
        rows: Ingested rows.
        users: Distinct users of the ingested rows.
        quarantined: Reason -> quarantined rows; reasons without any are left out.
        splits: Split -> pairs.
    """

    rows: int | None
    users: int | None
    quarantined: dict[str, int] | None
    splits: dict[str, int] | None


@dataclass(frozen=True)
class Changes:
    """Two versions and what lies between them.

    Attributes:
        names: What the two were called.
        before: The first in figures.
        after: The second in figures.
        added: Rows that the second has more often than the first, repetitions counted.
        removed: Rows that the first has more often than the second, repetitions counted.
        new_users: Users whom only the second has, sorted.
        gone_users: Users whom only the first has, sorted.
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
class Entry:
    """A line of the history.

    Attributes:
        version: The abbreviated commit, or `workspace`.
        tag: The tags of the commit.
        date: The commit's day, in ISO format.
        subject: The first line of its message.
        changed: Paths of data that differ from the version before.
        stale: What the stages have not caught up with.
        counts: The version in figures.
        missing: It has ingested data, and the cache lacks them.
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

    entries: tuple[Entry, ...]
    more: bool


def compare(first: str, second: str) -> Changes:
    """What changed from one revision to another; `WORKSPACE` names what is on disk.

    Raises:
        UserError: There is no DVC or Git repository, no such revision, no data in it, or they are
            not in the cache.
    """
    names = (first, second)
    with versions.repository() as repo:
        found = [versions.look(repo, name) for name in names]
        tables = [_required(name, version) for name, version in zip(names, found, strict=True)]
        counts = [_counts(version, rows) for version, rows in zip(found, tables, strict=True)]
    added, removed = row_changes(*tables)
    users = [set(rows["user_id"].dropna()) for rows in tables]
    return Changes(
        names=names,
        before=counts[0],
        after=counts[1],
        added=added,
        removed=removed,
        new_users=tuple(sorted(users[1] - users[0])),
        gone_users=tuple(sorted(users[0] - users[1])),
        stale=tuple(
            f"{name}: {what}"
            for name, version in zip(names, found, strict=True)
            for what in version.stale
        ),
    )


def row_changes(before: pd.DataFrame, after: pd.DataFrame) -> tuple[int, int]:
    """How many rows were added and removed, by content: a row that only moved is neither."""
    import pandas as pd

    counts = [
        pd.util.hash_pandas_object(rows[list(_CONTENT)], index=False).value_counts(sort=False)
        for rows in (before, after)
    ]
    difference = counts[1].sub(counts[0], fill_value=0)
    return int(difference.clip(lower=0).sum()), int(-difference.clip(upper=0).sum())


def history(number: int) -> History:
    """The newest `number` versions up to HEAD, and the workspace where it differs from them.

    A version is a commit whose data are others than those of the one before.

    Raises:
        UserError: There is no DVC or Git repository, or no commit.
    """
    entries: list[Entry] = []
    with versions.repository() as repo:
        tags = versions.tags(repo)
        newer_commit, newer = None, versions.look(repo, WORKSPACE)
        for commit in itertools.chain(versions.commits(repo), [None]):
            older = versions.NOTHING if commit is None else versions.look(repo, commit.hexsha)
            changed = _differing(newer, older)
            if changed and len(entries) == number:
                return History(tuple(entries), more=True)
            if changed:
                entries.append(_entry(newer_commit, newer, changed, tags))
            newer_commit, newer = commit, older
    return History(tuple(entries), more=False)


def _differing(one: Version, other: Version) -> tuple[str, ...]:
    paths = sorted(one.hashes.keys() | other.hashes.keys())
    return tuple(path for path in paths if one.hashes.get(path) != other.hashes.get(path))


def _entry(
    commit: Commit | None, version: Version, changed: tuple[str, ...], tags: dict[str, str]
) -> Entry:
    counts = _counts(version, _read_rows(version.ingested, ["user_id"]))
    return Entry(
        version=WORKSPACE if commit is None else commit.hexsha[:7],
        tag=None if commit is None else tags.get(commit.hexsha),
        date=None if commit is None else commit.committed_datetime.date().isoformat(),
        subject=None if commit is None else str(commit.summary),
        changed=changed,
        stale=version.stale,
        counts=counts,
        missing=counts.rows is None and versions.INGESTED in version.hashes,
    )


def _required(name: str, version: Version) -> pd.DataFrame:
    rows = _read_rows(version.ingested, _CONTENT)
    if rows is not None:
        return rows
    if versions.INGESTED in version.hashes:
        raise UserError("its data are not in the cache", where=name, fix=f"`{FETCH}`")
    raise UserError(
        "has no ingested data", where=name, fix="`dvc repro validate`, then commit dvc.lock"
    )


def _counts(version: Version, rows: pd.DataFrame | None) -> Counts:
    return Counts(
        rows=None if rows is None else len(rows),
        users=None if rows is None else int(rows["user_id"].nunique()),
        quarantined=_quarantined(version.prepared),
        splits=_splits(version.prepared),
    )


def _read_rows(files: Files, columns: Sequence[str]) -> pd.DataFrame | None:
    import pandas as pd

    file = files("rows.parquet")
    if file is None:
        return None
    with file:
        return pd.read_parquet(file, columns=list(columns))


def _quarantined(files: Files) -> dict[str, int] | None:
    import pandas as pd

    file = files("quarantine.parquet")
    if file is None:
        return None
    with file:
        reasons = pd.read_parquet(file, columns=["reason"])["reason"]
    return {str(reason): int(count) for reason, count in reasons.value_counts().items()}


def _splits(files: Files) -> dict[str, int] | None:
    file = files("dataset.json")
    if file is None:
        return None
    with file:
        splits: dict[str, int] = json.load(file)["splits"]
    return splits

"""Feedback that comes in over time: a store of dated batches that DVC keeps the versions of.

Nothing is ever changed in the store, batches are only added, so two versions of it share what they
have in common in DVC's cache and remotes.
"""

import contextlib
import datetime
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
from dvc.exceptions import DvcException, OverlappingOutputPathsError
from dvc.lock import LockError
from dvc.output import Output

from prlhf.infra.errors import UserError
from prlhf.infra.io import atomic_path
from prlhf.ingest.columns import contract_rows
from prlhf.ingest.files import Records
from prlhf.ingest.tables import find_files, read_file, say_unread
from prlhf.project.pipeline import open_project


class Appended(NamedTuple):
    """What came of an inbox: the new batch, if there was anything new, and how many rows it has.

    `known` counts rows of the inbox that the store had already, or that the inbox repeats.
    """

    path: Path | None
    rows: int
    known: int


def append(
    inbox: Path,
    store: Path,
    *,
    today: datetime.date,
    columns: Mapping[str, str | None] | None = None,
) -> Appended:
    """Add the new rows of an inbox to a store, as one JSON Lines file named after the day.

    Rows keep all fields under their own names; fields that only other rows of the same file have
    are null. A row is known if any batch has one of the same content: the order of fields and null
    fields do not count. Everything is read before anything is written, so an inbox with a fault
    adds nothing.

    Args:
        inbox: A file, or a directory (which may be empty) of files, of the kinds that
            `prlhf.ingest.tables` reads; what else is in it is named.
        store: The directory of batches; made if need be. If it has a `.dvc` file, it must hold
            what that lists: otherwise batches added elsewhere would be lost.
        today: The day that the batch is named after; a second batch of a day is numbered.
        columns: Our name -> the source's, as in `data.columns`. If given, files that the stage
            `ingest` would refuse are refused here, and ids and weights of CSV files are stored as
            it understands them (the number 1.5, the user 17 for 17.0) instead of as text.

    Raises:
        UserError: A file cannot be read, holds something that JSON cannot, or does not fit
            `columns` (the message names file and row); or the store lacks tracked batches.
    """
    rows = list(_inbox_rows(inbox, columns))
    if not rows:
        return Appended(None, 0, 0)
    made = not store.exists()
    store.mkdir(parents=True, exist_ok=True)
    try:
        with _only_writer(store):
            _require_tracked(store)
            # Of all rows in the store, whatever kinds of files it has.
            files = find_files(store) if any(_visible(store)) else []
            seen = {digest for file in files for digest, _ in _rows(_read_all(file))}
            new: dict[bytes, str] = {}
            for digest, line in rows:
                if digest not in seen:
                    new.setdefault(digest, line)
            if not new:
                return Appended(None, 0, len(rows))
            # The numbers sort behind the day's first batch: `_` comes after `.`.
            path, number = store / f"{today.isoformat()}.jsonl", 1
            while path.exists():
                number += 1
                path = store / f"{today.isoformat()}_{number:03}.jsonl"
            with atomic_path(path) as partial:
                partial.write_text("".join(new.values()), encoding="utf-8", newline="\n")
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                store.rmdir()
        raise
    return Appended(path, len(new), len(rows) - len(new))


def track(store: Path) -> None:
    """Make the store's present content its version: `dvc add STORE`, without output.

    Git has to be told afterwards: `STORE.dvc` and a `.gitignore` beside it have changed.

    Raises:
        UserError: This is no DVC project, or DVC refuses, e.g. because the store lies in the
            output of a stage or is tracked by Git.
    """
    if not store.is_dir():
        raise UserError("no such directory", where=store, fix="`prlhf data add` makes it")
    try:
        with open_project(fix="`git init` and `dvc init` make one") as repo:
            repo.scm_context.quiet = True
            repo.add(os.fspath(store))
    except LockError as error:
        raise UserError(
            "another DVC command is at work here", where=store, fix="try again when it has ended"
        ) from error
    except OverlappingOutputPathsError as error:
        problem = f"overlaps with {error.overlapping_out}, which DVC tracks already"
        raise UserError(problem, where=store, fix="choose another directory") from error
    except DvcException as error:
        raise UserError(f"DVC cannot track it: {error}", where=store) from error


def _inbox_rows(
    inbox: Path, columns: Mapping[str, str | None] | None
) -> Iterator[tuple[bytes, str]]:
    """The digest and the line of JSON of every row, in the order of files and rows."""
    if not inbox.exists():
        raise UserError("no such file or directory", where=inbox)
    if inbox.is_dir() and not any(_visible(inbox)):
        say_unread(inbox, sorted(entry.name for entry in inbox.iterdir()))
        return
    wanted = {theirs for theirs in (columns or {}).values() if theirs is not None}
    for file in find_files(inbox):
        records = _read_all(file, wanted)
        if columns is not None:
            # Refuse what `ingest` would refuse; understand the text of CSV cells as it does.
            rows = contract_rows(records, columns, file.name)
            for ours in ("user_id", "group", "unit", "weight"):
                theirs = columns.get(ours)
                if theirs is not None and not records.typed:
                    values = rows[ours].astype(object)
                    records.columns[theirs] = values.where(rows[ours].notna(), None)
        yield from _rows(records)


def _visible(directory: Path) -> Iterator[Path]:
    return (entry for entry in directory.iterdir() if not entry.name.startswith("."))


def _read_all(file: Path, wanted: Collection[str] = ()) -> Records:
    """All columns of a file: their names have to be known to be read.

    The `wanted` ones are what its form is told by, as the ingestion tells it.
    """
    return read_file(file, read_file(file, wanted).names)


def _rows(records: Records) -> Iterator[tuple[bytes, str]]:
    names = list(records.columns)
    columns = [_values(records, name) for name in names]
    for index, values in enumerate(zip(*columns, strict=True)):
        row = {
            # Typed tables mark a gap in a column of numbers by NaN.
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in zip(names, values, strict=True)
        }
        # A table writes the whole numbers of a column with gaps as 17.0.
        given = {
            name: int(value) if isinstance(value, float) and value.is_integer() else value
            for name, value in row.items()
            if value is not None
        }
        try:
            content = _encode_sorted(given).encode("utf-8")
            line = _encode(row) + "\n"
            line.encode(
                "utf-8"
            )  # a field that only other rows have may have a name that is no text
            yield hashlib.blake2b(content, digest_size=16).digest(), line
        except (TypeError, ValueError, RecursionError) as error:
            problem = f"cannot be kept as JSON: {_reason(error)}"
            raise UserError(problem, where=records.where(index)) from error


def _values(records: Records, name: str) -> list[Any]:
    column = records.columns[name]
    try:
        return column.to_pylist() if isinstance(column, pa.ChunkedArray) else list(column)
    except (ValueError, OverflowError) as error:
        # A time that Python cannot hold, for instance.
        problem = f'column "{name}": cannot be kept as JSON: {error}'
        raise UserError(problem, where=records.place) from error


def _plain(value: object) -> str:
    """Dates and times, which Parquet has but JSON has not, as text."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise TypeError(f"it holds a value of type {type(value).__name__}")


_JSON: Final[dict[str, Any]] = {"ensure_ascii": False, "allow_nan": False, "default": _plain}
_encode = json.JSONEncoder(**_JSON).encode
_encode_sorted = json.JSONEncoder(**_JSON, sort_keys=True, separators=(",", ":")).encode


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "it holds an unpaired surrogate, which is no valid Unicode text"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error)


@contextlib.contextmanager
def _only_writer(store: Path) -> Iterator[None]:
    """Wait until nobody else adds to the store. The lock is on the directory itself: no file."""
    descriptor = os.open(store, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _require_tracked(store: Path) -> None:
    """Refuse to add to a store that lacks tracked batches: the next version would lose them."""
    tracked = store.with_name(f"{store.name}.dvc")
    if not tracked.exists():
        return
    try:
        with open_project(store.parent) as repo:
            (out,) = repo.find_outs_by_path(os.fspath(store.absolute()))
            missing = _missing(out, store)
    except DvcException as error:
        raise UserError(f"DVC cannot read it: {error}", where=tracked) from error
    if missing:
        raise UserError(
            f"{missing} of the tracked version is not here",
            where=store,
            fix=f"`dvc pull {store}` brings it; if it was removed on purpose, `dvc add {store}`",
        )


def _missing(out: Output, store: Path) -> str | None:
    """The first batch of a tracked store that is not on disk; `all` if the cache cannot tell."""
    if not out.hash_info or (any(_visible(store)) and not out.changed_checksum()):
        return None
    listing = out.get_obj()
    if listing is None:
        return "all"
    names = sorted("/".join(key) for key, _, _ in listing)
    return next((name for name in names if not (store / name).exists()), None)

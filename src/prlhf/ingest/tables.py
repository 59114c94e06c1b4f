"""Local files of preference pairs: which there are, and their columns.

`prlhf.ingest.columnar` reads files without a fault faster.
"""

import os
from array import array
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from prlhf.data.prompts import encodable
from prlhf.infra.errors import UserError
from prlhf.infra.progress import say
from prlhf.ingest.delimited import DELIMITERS, RENAME, read_delimited
from prlhf.ingest.files import (
    LINES,
    PACKED,
    Records,
    Repeating,
    file_format,
    json_values,
    open_parquet,
    require_object,
    unpacking,
)

NAMED: Final = 5
"""Files that are not read are named up to this many."""


def find_files(path: Path) -> list[Path]:
    """The data files that `path` names: itself, or those of a directory and the ones below it.

    They are sorted by name. What else is in the directory is named in a line of its own: files of
    other kinds, hidden ones, links to directories.

    Raises:
        UserError: There is none, or a name is not UTF-8.
    """
    formats = f"{', '.join(READERS)}, each also with {' or '.join(PACKED)}"
    if path.is_dir():
        files, others = _listed(path)
        if not files:
            found = f", but {_some(others)}" if others else ""
            problem = f"no data file in this directory{found}"
            raise UserError(problem, where=path, fix=f"known: {formats}")
        say_unread(path, others)
    elif not path.exists():
        raise UserError("no such file or directory", where=path, fix="set data.path")
    elif file_format(path) not in READERS:
        problem = f"unknown kind of file {file_format(path) or 'without a suffix'}"
        raise UserError(problem, where=path, fix=f"known: {formats}")
    elif not path.is_file():
        raise UserError("is no regular file", where=path, fix="copy what it gives to a file")
    else:
        files = [path]
    for file in files:
        if not encodable(file.name):
            raise UserError("its name is not UTF-8", where=ascii(str(file)), fix="rename it")
    return files


def _listed(root: Path) -> tuple[list[Path], list[str]]:
    """The data files of a directory, at any depth, and the names of all else in it."""

    def fail(error: OSError) -> None:
        raise error

    files: list[Path] = []
    others: list[str] = []
    for place, directories, names in os.walk(root, onerror=fail):
        here = Path(place)
        left_out = [
            name for name in directories if name.startswith(".") or (here / name).is_symlink()
        ]
        directories[:] = [name for name in directories if name not in left_out]
        others += [f"{(here / name).relative_to(root).as_posix()}/" for name in left_out]
        for file in map(here.joinpath, names):
            if file_format(file) in READERS and not file.name.startswith(".") and file.is_file():
                files.append(file)
            else:
                others.append(file.relative_to(root).as_posix())
    return sorted(files), sorted(others)


def say_unread(path: Path, names: list[str]) -> None:
    """Name what is in a directory, but not read; nothing if there is nothing."""
    if names:
        say(f"{path}: not read, being hidden or of another kind: {_some(names)}")


def _some(names: list[str]) -> str:
    shown = [name if name.isprintable() else ascii(name) for name in names[:NAMED]]
    return ", ".join(shown) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def read_file(path: Path, wanted: Collection[str]) -> Records:
    """Read the `wanted` columns of one file, as far as it has them.

    Raises:
        UserError: The file is empty, damaged or not what its name says; the message names the line
            where there is one.
    """
    with unpacking(path):
        records = READERS[file_format(path)](path, wanted)
    if not len(records.numbers):
        raise UserError("is empty: no rows in it", where=path)
    return records


def table_records(table: pa.Table, place: str, names: list[str]) -> Records:
    """Records of an Arrow table, whose rows are numbered from 1."""
    columns = {name: table.column(name) for name in table.column_names}
    return Records(place, "row", range(1, table.num_rows + 1), names, dict(columns))


def _read_json(path: Path, wanted: Collection[str]) -> Records:
    numbers = array("q")
    records = Records(str(path), "line", numbers, [])
    columns: dict[str, list[Any]] = {name: [] for name in wanted}
    seen: dict[str, None] = {}
    for unit, number, record in json_values(path, wanted):
        records.unit = unit
        numbers.append(number)
        record = require_object(record, records.where(-1))
        if isinstance(record, Repeating) and (twice := record.repeated & set(wanted)):
            raise records.wrong(-1, min(twice), "stands more than once", "keep one of them")
        if record.keys() - seen.keys():
            seen.update(dict.fromkeys(record))
        for name, column in columns.items():
            column.append(record.get(name))
    records.names = list(seen)
    records.columns.update((name, column) for name, column in columns.items() if name in seen)
    return records


def _read_parquet(path: Path, wanted: Collection[str]) -> Records:
    with open_parquet(path) as parquet:
        names = list(parquet.schema_arrow.names)
        chosen = [name for name in names if name in wanted]
        for name in chosen:
            if (count := names.count(name)) > 1:
                raise UserError(f'has {count} columns named "{name}"', where=path, fix=RENAME)
        table = parquet.read(columns=chosen)
        # Of texts, reading does not say whether they are UTF-8.
        table.validate(full=True)
    return table_records(table, str(path), names)


READERS: Final[dict[str, Callable[[Path, Collection[str]], Records]]] = {
    **dict.fromkeys((*LINES, ".json"), _read_json),
    **dict.fromkeys(DELIMITERS, read_delimited),
    ".parquet": _read_parquet,
}
"""By the suffix of a file's name."""

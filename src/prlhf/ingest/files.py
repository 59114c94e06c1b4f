"""Local files of preference pairs: JSON Lines, JSON, CSV, TSV and Parquet, gzipped or not.

The text formats go through the standard library, which knows the line that every value came from.
`prlhf.ingest.columnar` reads files without a fault faster.
"""

import contextlib
import csv
import gzip
import io
import json
import sys
import zlib
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from prlhf.data.prompts import describe
from prlhf.infra.errors import UserError

DELIMITERS: Final = {".csv": ",", ".tsv": "\t"}


@dataclass
class Records:
    """Some columns of one source, as they stand there.

    Attributes:
        place: What error messages call the source: its path, or a data set's id.
        unit: What `numbers` count: lines of a text file, rows of a table, elements of a JSON list.
        numbers: Where each record stands, from 1.
        names: All columns of the source, read or not.
        columns: The columns read, by their name in the source: an Arrow column, or a list of Python
            values in which None stands for a missing one.
        typed: Whether the source tells numbers from text. CSV does not.
    """

    place: str
    unit: Literal["line", "row", "element"]
    numbers: Sequence[int]
    names: list[str]
    columns: dict[str, list[Any] | pa.ChunkedArray] = field(default_factory=dict)
    typed: bool = True

    def where(self, index: int) -> str:
        """Where the record at `index` (from 0) stands, for an error message."""
        return _place(self.place, self.unit, self.numbers[index])


def _place(source: str | Path, unit: str, number: int) -> str:
    return f"{source}:{number}" if unit == "line" else f"{source}: {unit} {number}"


def find_files(path: Path) -> list[Path]:
    """The data files that `path` names: itself, or the files of a directory sorted by name.

    Raises:
        UserError: There is none.
    """
    formats = f"{', '.join(READERS)}, each also with .gz"
    if path.is_dir():
        files = sorted(
            entry
            for entry in path.iterdir()
            if entry.is_file() and not entry.name.startswith(".") and file_format(entry) in READERS
        )
        if not files:
            raise UserError("no data file in this directory", where=path, fix=f"known: {formats}")
        return files
    if not path.exists():
        raise UserError("no such file or directory", where=path, fix="set data.path")
    if file_format(path) not in READERS:
        problem = f"unknown kind of file {file_format(path) or 'without a suffix'}"
        raise UserError(problem, where=path, fix=f"known: {formats}")
    return [path]


def read_file(path: Path, wanted: Collection[str]) -> Records:
    """Read the `wanted` columns of one file, as far as it has them.

    Raises:
        UserError: The file is empty, damaged or not what its name says; the message names the line
            where there is one.
    """
    with _unpacking(path):
        records = READERS[file_format(path)](path, wanted)
    if not len(records.numbers):
        raise UserError("is empty: no rows in it", where=path)
    return records


def read_values(path: Path, wanted: Collection[str]) -> Iterator[tuple[int, str, Any]]:
    """The records of a JSON Lines, JSON or Parquet file: number, place in words, and value.

    They are read one by one: except for a JSON list, no more than a batch of rows is held at a
    time. Of Parquet only the `wanted` columns are read.

    Raises:
        UserError: As `read_file`, or the format cannot hold nested fields.
    """
    empty = True
    with _unpacking(path):
        for unit, number, value in _values(path, wanted):
            empty = False
            yield number, _place(path, unit, number), value
    if empty:
        raise UserError("is empty: no rows in it", where=path)


def read_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """The lines of a text file that are not blank, as `read_values` gives values.

    Raises:
        UserError: The file is damaged or not UTF-8.
    """
    with _unpacking(path):
        for number, line in enumerate(_lines(path), 1):
            if text := line.strip():
                yield number, f"{path}:{number}", text


def file_format(path: Path) -> str:
    """The suffix that tells the format, `.gz` left aside."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def open_binary(path: Path) -> io.BufferedIOBase:
    """A file's bytes, unpacked."""
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


def table_records(table: pa.Table, place: str, names: list[str]) -> Records:
    """Records of an Arrow table, whose rows are numbered from 1."""
    columns = {name: table.column(name) for name in table.column_names}
    return Records(place, "row", range(1, table.num_rows + 1), names, dict(columns))


@contextlib.contextmanager
def _unpacking(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"is not a whole gzip file: {error}", where=path) from error


def _values(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, int, Any]]:
    """The values of a file, each with what its number counts and the number."""
    kind = file_format(path)
    if kind == ".parquet":
        with _parquet(path) as parquet:
            columns = [name for name in parquet.schema_arrow.names if name in wanted]
            batches = parquet.iter_batches(batch_size=4096, columns=columns)
            records = (record for batch in batches for record in batch.to_pylist())
            for number, record in enumerate(records, 1):
                yield "row", number, record
    elif kind in (".json", ".jsonl"):
        yield from _json_values(path)
    else:
        raise UserError(
            f"a {kind} file has no nested fields", where=path, fix="known: .jsonl, .json, .parquet"
        )


def _json_values(path: Path) -> Iterator[tuple[Literal["line", "element"], int, Any]]:
    if file_format(path) == ".json":
        text = "".join(_lines(path))
        # Many tools write JSON Lines under this name.
        if text.lstrip().startswith("["):
            for number, element in enumerate(_parse(text, path, None), 1):
                yield "element", number, element
            return
    for number, line in enumerate(_lines(path), 1):
        if line and not line.isspace():
            yield "line", number, _parse(line.rstrip("\r\n"), path, number)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends; a byte-order mark is dropped.

    Lines end at a line feed only: JSON may hold Unicode's other line separators.
    """
    offset = 0
    with open_binary(path) as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = f"0x{line[error.start]:02X} at offset {offset + error.start}"
                raise UserError(
                    f"is not UTF-8: byte {byte}",
                    where=f"{path}:{number}",
                    fix="save the file as UTF-8",
                ) from error
            offset += len(line)
            yield text.removeprefix("\ufeff") if number == 1 else text


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_decode = json.JSONDecoder(parse_constant=_no_constant).decode


def _parse(text: str, path: Path, line: int | None) -> Any:
    try:
        return _decode(text)
    except (ValueError, RecursionError) as error:
        problem = str(error)
        if isinstance(error, json.JSONDecodeError):
            line = line or error.lineno
            problem = f"{error.msg} (column {error.colno})"
        where = f"{path}:{line}" if line else path
        raise UserError(f"malformed JSON: {problem}", where=where) from error


def _read_json(path: Path, wanted: Collection[str]) -> Records:
    numbers = array("q")
    records = Records(str(path), "line", numbers, [])
    columns: dict[str, list[Any]] = {name: [] for name in wanted}
    seen: dict[str, None] = {}
    for unit, number, record in _json_values(path):
        records.unit = unit
        numbers.append(number)
        if not isinstance(record, dict):
            problem = f"expected a JSON object, found {describe(record)}"
            raise UserError(problem, where=records.where(-1))
        if record.keys() - seen.keys():
            seen.update(dict.fromkeys(record))
        for name, column in columns.items():
            column.append(record.get(name))
    records.names = list(seen)
    records.columns.update((name, column) for name, column in columns.items() if name in seen)
    return records


def _read_delimited(path: Path, wanted: Collection[str], *, delimiter: str) -> Records:
    # Without this, a cell over 128 kB is an error of the csv module's own.
    csv.field_size_limit(sys.maxsize)
    # `strict` makes a stray or unclosed quote an error instead of a merged row.
    reader = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    start = 1
    try:
        header = next((row for row in reader if row), [])
        columns: dict[str, list[str | None]] = {name: [] for name in wanted if name in header}
        for name in columns:
            if (count := header.count(name)) > 1:
                raise UserError(f'has {count} columns named "{name}"', where=f"{path}:1")
        targets = [(column, header.index(name)) for name, column in columns.items()]
        numbers = array("q")
        start = reader.line_num + 1
        for row in reader:
            if row:
                if len(row) != len(header):
                    problem = f"has {len(row)} fields where the header has {len(header)}"
                    raise UserError(problem, where=f"{path}:{start}")
                numbers.append(start)
                for column, place in targets:
                    column.append(row[place] or None)
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"malformed row: {error}", where=f"{path}:{start}", fix="check its quotes"
        ) from error
    return Records(str(path), "line", numbers, header, dict(columns), typed=False)


def _read_parquet(path: Path, wanted: Collection[str]) -> Records:
    with _parquet(path) as parquet:
        names = list(parquet.schema_arrow.names)
        table = parquet.read(columns=[name for name in names if name in wanted])
    return table_records(table, str(path), names)


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """An open Parquet file; damage found in the block is the file's."""
    with open_binary(path) as file:
        content = io.BytesIO(file.read()) if path.name.lower().endswith(".gz") else file
        try:
            yield pq.ParquetFile(content)
        except (pa.ArrowInvalid, OSError) as error:
            # Arrow reports damage within a column as OSError; a failing disk has an errno.
            if isinstance(error, OSError) and error.errno:
                raise
            raise UserError(f"is not a readable Parquet file: {error}", where=path) from error


READERS: Final[dict[str, Callable[[Path, Collection[str]], Records]]] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    **{kind: partial(_read_delimited, delimiter=mark) for kind, mark in DELIMITERS.items()},
    ".parquet": _read_parquet,
}
"""By the suffix of a file's name."""

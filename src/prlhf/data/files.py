"""Local files of preference pairs: JSON Lines, JSON, CSV, TSV and Parquet, gzipped or not.

The text formats go through the standard library, which knows the line that every value came from.
`prlhf.data.json_lines` and `prlhf.data.delimited` have a faster way for files without a fault.
"""

from __future__ import annotations

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
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

from prlhf.data.contract import describe
from prlhf.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


@dataclass
class Records:
    """Some columns of one source, as they stand there.

    Attributes:
        place: What error messages call the source: its path, or a data set's id.
        unit: What `numbers` count: lines of a text file, rows of a table, elements of a JSON list.
        numbers: Where each record stands, from 1.
        names: All columns of the source, read or not.
        columns: The columns read, by their name in the source. A text source gives a list of
            Python values, in which None stands for a missing one; a typed one an Arrow column.
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
        number = self.numbers[index]
        return (
            f"{self.place}:{number}"
            if self.unit == "line"
            else (f"{self.place}: {self.unit} {number}")
        )


Object = tuple[int, str, dict[str, Any]]
"""A record: its number in the file (as in `Records`), where it stands in words, its fields."""


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
        raise UserError(
            f"unknown kind of file {file_format(path) or 'without a suffix'}",
            where=path,
            fix=f"known: {formats}",
        )
    return [path]


def read_file(path: Path, wanted: Collection[str]) -> Records:
    """Read the `wanted` columns of one file, as far as it has them.

    Raises:
        UserError: The file is empty, damaged or not what its name says; the message names the line
            where there is one.
    """
    try:
        records = READERS[file_format(path)](path, wanted)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"is not a whole gzip file: {error}", where=path) from error
    if not len(records.numbers):
        raise UserError("is empty: no rows in it", where=path)
    return records


def read_objects(path: Path, wanted: Collection[str]) -> Iterator[Object]:
    """The records of a JSON Lines, JSON or Parquet file, one by one.

    For records of nested fields, which are many times larger in memory than what is made of them:
    but for a JSON list, no more than a batch of rows is held at a time. Of Parquet only the
    `wanted` columns are read.

    Raises:
        UserError: As `read_file`, or the format cannot hold nested fields.
    """
    for number, where, record in read_values(path, wanted):
        if not isinstance(record, dict):
            raise UserError(f"expected a JSON object, found {describe(record)}", where=where)
        yield number, where, record


def read_values(path: Path, wanted: Collection[str]) -> Iterator[tuple[int, str, Any]]:
    """As `read_objects`, but the values of a JSON Lines or JSON file may be of any kind.

    Raises:
        UserError: As `read_objects`.
    """
    empty = True
    try:
        for value in _values(path, wanted):
            empty = False
            yield value
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"is not a whole gzip file: {error}", where=path) from error
    if empty:
        raise UserError("is empty: no rows in it", where=path)


def read_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """The lines of a text file that hold something, as `read_values` gives values.

    Raises:
        UserError: The file is damaged or not UTF-8.
    """
    try:
        for number, line in enumerate(_lines(path), 1):
            if text := line.strip():
                yield number, f"{path}:{number}", text
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"is not a whole gzip file: {error}", where=path) from error


def _values(path: Path, wanted: Collection[str]) -> Iterator[tuple[int, str, Any]]:
    kind = file_format(path)
    if kind == ".json":
        text = "".join(_lines(path))
        if text.lstrip().startswith("["):
            for number, element in enumerate(_parse(text, path, None), 1):
                yield number, f"{path}: element {number}", element
            return
    if kind in (".jsonl", ".json"):
        for number, line in enumerate(_lines(path), 1):
            if line and not line.isspace():
                yield number, f"{path}:{number}", _parse(line.rstrip("\r\n"), path, number)
    elif kind == ".parquet":
        with _parquet(path) as parquet:
            columns = [name for name in parquet.schema_arrow.names if name in wanted]
            batches = parquet.iter_batches(batch_size=4096, columns=columns)
            records = (record for batch in batches for record in batch.to_pylist())
            for number, record in enumerate(records, 1):
                yield number, f"{path}: row {number}", record
    else:
        raise UserError(
            f"a {kind} file has no nested fields", where=path, fix="known: .jsonl, .json, .parquet"
        )


def file_format(path: Path) -> str:
    """The suffix that tells the format, `.gz` left aside."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def open_binary(path: Path) -> io.BufferedIOBase:
    """A file's bytes, unpacked."""
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


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
                raise UserError(
                    f"is not UTF-8: byte 0x{line[error.start]:02X} at offset "
                    f"{offset + error.start}",
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
    except json.JSONDecodeError as error:
        number = error.lineno if line is None else line
        raise UserError(
            f"malformed JSON: {error.msg} (column {error.colno})", where=f"{path}:{number}"
        ) from error
    except (ValueError, RecursionError) as error:
        where = str(path) if line is None else f"{path}:{line}"
        raise UserError(f"malformed JSON: {error}", where=where) from error


def _read_json_lines(path: Path, wanted: Collection[str]) -> Records:
    records = Records(str(path), "line", array("q"), [], {name: [] for name in wanted})
    seen: dict[str, None] = {}
    fill = _filler(records, seen)
    for number, text in enumerate(_lines(path), 1):
        if text.isspace() or not text:
            continue
        fill(number, _parse(text.rstrip("\r\n"), path, number))
    return _with_names(records, seen)


def _read_json(path: Path, wanted: Collection[str]) -> Records:
    text = "".join(_lines(path))
    if not text.lstrip().startswith("["):
        # Many tools write JSON Lines under this name.
        return _read_json_lines(path, wanted)
    records = Records(str(path), "element", array("q"), [], {name: [] for name in wanted})
    seen: dict[str, None] = {}
    fill = _filler(records, seen)
    for number, element in enumerate(_parse(text, path, None), 1):
        fill(number, element)
    return _with_names(records, seen)


def _filler(records: Records, seen: dict[str, None]) -> Callable[[int, Any], None]:
    """A function that adds one JSON object to `records` and its keys to `seen`."""
    numbers = records.numbers
    assert isinstance(numbers, array)
    targets = [(name, column) for name, column in records.columns.items()]

    def fill(number: int, record: Any) -> None:
        numbers.append(number)
        if not isinstance(record, dict):
            raise UserError(
                f"expected a JSON object, found {describe(record)}",
                where=records.where(len(numbers) - 1),
            )
        if record.keys() - seen.keys():
            seen.update(dict.fromkeys(record))
        for name, column in targets:
            column.append(record.get(name))

    return fill


def _with_names(records: Records, seen: dict[str, None]) -> Records:
    records.names = list(seen)
    records.columns = {name: column for name, column in records.columns.items() if name in seen}
    return records


def _read_delimited(path: Path, wanted: Collection[str], delimiter: str) -> Records:
    # Without this, a cell over 128 kB is an error of the csv module's own.
    csv.field_size_limit(sys.maxsize)
    # `strict` makes a stray or unclosed quote an error instead of a merged row.
    reader = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    start = 1
    try:
        header = next((row for row in reader if row), [])
        records = Records(str(path), "line", array("q"), header, typed=False)
        numbers = array("q")
        places = {name: _place(name, header, path) for name in wanted if name in header}
        columns: dict[str, list[str | None]] = {name: [] for name in places}
        targets = [(columns[name], place) for name, place in places.items()]
        start = reader.line_num + 1
        for row in reader:
            if row:
                if len(row) != len(header):
                    raise UserError(
                        f"has {len(row)} fields where the header has {len(header)}",
                        where=f"{path}:{start}",
                    )
                numbers.append(start)
                for column, place in targets:
                    column.append(row[place] or None)
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"malformed row: {error}", where=f"{path}:{start}", fix="check its quotes"
        ) from error
    records.numbers = numbers
    records.columns.update(columns)
    return records


def _place(name: str, header: list[str], path: Path) -> int:
    if header.count(name) > 1:
        raise UserError(f'has {header.count(name)} columns named "{name}"', where=f"{path}:1")
    return header.index(name)


def _read_csv(path: Path, wanted: Collection[str]) -> Records:
    return _read_delimited(path, wanted, ",")


def _read_tsv(path: Path, wanted: Collection[str]) -> Records:
    return _read_delimited(path, wanted, "\t")


def _read_parquet(path: Path, wanted: Collection[str]) -> Records:
    with _parquet(path) as parquet:
        names = list(parquet.schema_arrow.names)
        table = parquet.read(columns=[name for name in names if name in wanted])
    return table_records(table, str(path), names)


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """An open Parquet file; damage found in the block is the file's."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_binary(path) as file:
        content = io.BytesIO(file.read()) if path.name.lower().endswith(".gz") else file
        try:
            yield pq.ParquetFile(content)
        except (pa.ArrowInvalid, OSError) as error:
            # Arrow reports damage within a column as OSError; a failing disk has an errno.
            if isinstance(error, OSError) and error.errno:
                raise
            raise UserError(f"is not a readable Parquet file: {error}", where=path) from error


def table_records(table: pa.Table, place: str, names: list[str]) -> Records:
    """Records of an Arrow table, whose rows are numbered from 1."""
    columns = {name: table.column(name) for name in table.column_names}
    return Records(place, "row", range(1, table.num_rows + 1), names, dict(columns))


READERS: Final[dict[str, Callable[[Path, Collection[str]], Records]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}

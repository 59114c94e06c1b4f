"""What is in one file: its text, its JSON values, its rows, each with its place.

The text formats go through the standard library, which knows the line that every value came from.
"""

import contextlib
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from prlhf.data.prompts import describe
from prlhf.infra.errors import UserError

LINES: Final = (".jsonl", ".ndjson")
"""Names of JSON Lines."""

PACKED: Final = (".gz", ".zst")
"""Further suffixes, of packed files: gzip and Zstandard."""

# How files begin that are no text, whatever their name says: what they are, and what to do.
_KINDS: Final = {
    b"\x1f\x8b": ("is packed with gzip", "end its name in .gz"),
    b"\x28\xb5\x2f\xfd": ("is packed with Zstandard", "end its name in .zst"),
    b"BZh91AY": ("is packed with bzip2", "unpack it; .gz and .zst can be read"),
    b"\xfd7zXZ": ("is packed with xz", "unpack it; .gz and .zst can be read"),
    b"PK\x03\x04": ("is a ZIP archive, or a spreadsheet", "unpack it, or save it as CSV UTF-8"),
    b"\xd0\xcf\x11\xe0": ("is a spreadsheet", "save it as CSV UTF-8"),
    b"PAR1\x15": ("is a Parquet file", "end its name in .parquet"),
    b"version https://git-lfs": ("is a pointer of Git LFS", "`git lfs pull` brings the file"),
}
# Outside of texts, what Python writes for numbers that JSON does not have.
_CONSTANT: Final = re.compile(r'"(?:[^"\\]|\\.)*"|(NaN|-?Infinity)', re.DOTALL)


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
        notes: What was found out about the source's form that its name does not say.
    """

    place: str
    unit: str
    numbers: Sequence[int]
    names: list[str]
    columns: dict[str, list[Any] | pa.ChunkedArray] = field(default_factory=dict)
    typed: bool = True
    notes: tuple[str, ...] = ()

    def where(self, index: int) -> str:
        """Where the record at `index` (from 0) stands, for an error message."""
        return stands_at(self.place, self.unit, self.numbers[index])

    def wrong(self, index: int, name: str, problem: str, fix: str | None = None) -> UserError:
        """What is wrong with a value of the record at `index`, for the caller to raise."""
        return UserError(f'column "{name}": {problem}', where=self.where(index), fix=fix)


class Repeating(dict[str, Any]):
    """A JSON object that has a name more than once: the values given last, and those names."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        names = [name for name, _ in pairs]
        self.repeated = {name for name in self if names.count(name) > 1}


def stands_at(source: str | Path, unit: str, number: int) -> str:
    """Where a record stands, in the words of an error message."""
    return f"{source}:{number}" if unit == "line" else f"{source}: {unit} {number}"


def is_message(value: object) -> bool:
    """Whether a value has the form of a chat message: `{role, content}`, or `{from, value}`."""
    return isinstance(value, dict) and any(
        names <= value.keys() for names in ({"role", "content"}, {"from", "value"})
    )


def read_values(path: Path, wanted: Collection[str]) -> Iterator[tuple[int, str, Any]]:
    """The records of a JSON Lines, JSON or Parquet file: number, place in words, and value.

    They are read one by one: except for a JSON document, no more than a batch of rows is held at a
    time. Of Parquet only the `wanted` columns are read.

    Raises:
        UserError: The file is empty, damaged or not what its name says, or its format cannot hold
            nested fields; the message names the line where there is one.
    """
    empty = True
    with unpacking(path):
        for unit, number, value in _values(path, wanted):
            empty = False
            yield number, stands_at(path, unit, number), value
    if empty:
        raise UserError("is empty: no rows in it", where=path)


def read_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """The lines of a text file that are not blank, as `read_values` gives values.

    Raises:
        UserError: The file is damaged or not UTF-8.
    """
    with unpacking(path):
        for number, line in enumerate(text_lines(path), 1):
            if text := line.strip():
                yield number, f"{path}:{number}", text


# ---------------------------------------------------------------- bytes and lines


def file_format(path: Path) -> str:
    """The suffix that tells the format, that of a packed file left aside; in lower case."""
    name = Path(path.name.lower())
    return (name.with_suffix("") if name.suffix in PACKED else name).suffix


def open_binary(path: Path) -> io.BufferedIOBase:
    """A file's bytes, unpacked."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")
    if path.suffix.lower() == ".zst":
        return io.BufferedReader(pa.CompressedInputStream(path.open("rb"), "zstd"))
    return path.open("rb")


@contextlib.contextmanager
def unpacking(path: Path) -> Iterator[None]:
    """What a damaged archive raises in the block becomes one plain error.

    Raises:
        UserError: The archive is not whole.
    """
    try:
        yield
    except (EOFError, OSError, zlib.error) as error:
        # A failing disk has an errno. Arrow has no class of its own for what it cannot unpack.
        if path.suffix.lower() not in PACKED or (isinstance(error, OSError) and error.errno):
            raise
        kind = "gzip" if path.suffix.lower() == ".gz" else "Zstandard"
        raise UserError(f"is not a whole {kind} file: {error}", where=path) from error


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends; a byte-order mark is dropped.

    Lines end at a line feed only: JSON may hold Unicode's other line separators.

    Raises:
        UserError: It is no text, or not UTF-8.
    """
    offset = 0
    with open_binary(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                _require_text(path, line)
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = f"0x{line[error.start]:02X} at offset {offset + error.start}"
                raise UserError(
                    f"is not UTF-8: byte {byte}",
                    where=f"{path}:{number}",
                    fix="save the file as UTF-8; `iconv -f CP1252 -t UTF-8` if it is from Windows",
                ) from error
            offset += len(line)
            yield text.removeprefix("\ufeff") if number == 1 else text


def _require_text(path: Path, line: bytes) -> None:
    for start, (what, fix) in _KINDS.items():
        if line.startswith(start):
            raise UserError(what, where=path, fix=fix)
    encoding = json.detect_encoding(line)
    if not encoding.startswith("utf-8"):
        name = f"{encoding[:6]}{encoding[7:]}".upper()
        fix = f"save the file as UTF-8; `iconv -f {name} -t UTF-8` does it"
        raise UserError(f"is {name}, not UTF-8", where=path, fix=fix)


# ---------------------------------------------------------------- values


def _values(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, int, Any]]:
    """The values of a file, each with what its number counts and the number."""
    kind = file_format(path)
    if kind == ".parquet":
        with open_parquet(path) as parquet:
            columns = [name for name in parquet.schema_arrow.names if name in wanted]
            batches = parquet.iter_batches(batch_size=4096, columns=columns)
            records = (record for batch in batches for record in batch.to_pylist())
            for number, record in enumerate(records, 1):
                yield "row", number, record
    elif kind == ".json" or kind in LINES:
        yield from json_values(path, wanted)
    else:
        known = ", ".join((*LINES, ".json", ".parquet"))
        raise UserError(f"a {kind} file has no nested fields", where=path, fix=f"known: {known}")


@contextlib.contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """An open Parquet file; damage found in the block is the file's.

    Raises:
        UserError: It is no Parquet file, or damaged.
    """
    with open_binary(path) as file:
        content = io.BytesIO(file.read()) if path.suffix.lower() in PACKED else file
        try:
            yield pq.ParquetFile(content)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            # Arrow reports damage within a column as OSError; a failing disk has an errno.
            if isinstance(error, OSError) and error.errno:
                raise
            raise UserError(f"is not a readable Parquet file: {error}", where=path) from error


def json_values(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, int, Any]]:
    """The values of a JSON file, each with what its number counts and the number.

    What stands in the file decides, not its name: values line by line, a list of values, or an
    object that wraps one list of objects. An object with a `wanted` field is a record itself.

    Raises:
        UserError: The file is no JSON; or it is one object that is no record, and holds no one list
            of them.
    """
    lines = (
        (number, line.rstrip("\r\n"))
        for number, line in enumerate(text_lines(path), 1)
        if line and not line.isspace()
    )
    opening = list(itertools.islice(lines, 2))
    if len(opening) == 2 and _is_whole(opening[0][1], path):
        for number, line in itertools.chain(opening, lines):
            yield "line", number, _parse(line, path, number)
    elif opening:
        yield from _document_values(path, opening, wanted)


def _is_whole(line: str, path: Path) -> bool:
    """Whether a file's first line is a value by itself; a list is not, where lists are expected."""
    try:
        value = _decode(line)
    except (ValueError, RecursionError):
        return False
    return not (isinstance(value, list) and file_format(path) == ".json")


def _document_values(
    path: Path, opening: list[tuple[int, str]], wanted: Collection[str]
) -> Iterator[tuple[str, int, Any]]:
    """The values of a file that is one JSON document, as far as can be told from its opening."""
    number, first = opening[0]
    listed = file_format(path) == ".json" or len(opening) > 1
    try:
        document = _parse("".join(text_lines(path)), path, None)
    except UserError:
        if file_format(path) in LINES and first.strip() not in ("[", "{"):
            _parse(first, path, number)
        raise
    if isinstance(document, list) and (listed or _are_records(document)):
        yield from (("element", place, value) for place, value in enumerate(document, 1))
    elif isinstance(document, dict) and (name := _wrapped(document, path, wanted)):
        unit = f'element of "{name}"'
        yield from ((unit, place, value) for place, value in enumerate(document[name], 1))
    else:
        yield "line", number, document


def _are_records(value: object) -> bool:
    """Whether a value is a list of objects that are no chat messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, dict) and not is_message(each) for each in value)
    )


def _wrapped(document: dict[str, Any], path: Path, wanted: Collection[str]) -> str | None:
    """Under which name an object, the whole of a file, holds the records; None if it is one."""
    columns = len(document) > 1 and (
        all(isinstance(value, dict) for value in document.values())
        or all(
            isinstance(value, list) and not any(map(is_message, value))
            for value in document.values()
        )
    )
    lists = [name for name, value in document.items() if _are_records(value)]
    if len(lists) == 1 and not document.keys() & set(wanted):
        # Where it is not known what a record has, a list may be a part of one.
        return lists[0] if wanted or len(document) == 1 or lists[0] == "data" else None
    if columns and (wanted or file_format(path) == ".json"):
        named = ", ".join(name[:40] for name in list(document)[:5])
        raise UserError(
            f"is one object, with {named}, instead of one for each row",
            where=path,
            fix='pandas writes rows with to_json(orient="records", lines=True); keep one list',
        )
    return None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else Repeating(pairs)


_decode = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_object).decode


def _parse(text: str, path: Path, line: int | None) -> Any:
    try:
        return _decode(text)
    except (ValueError, RecursionError) as error:
        # Behind the semicolon is what to do about it in Python.
        problem, fix = str(error).partition(";")[0], None
        if isinstance(error, RecursionError):
            problem = "nested too deeply"
        elif isinstance(error, json.JSONDecodeError):
            line = line or error.lineno
            problem = f"{error.msg} (column {error.colno})"
            if error.msg == "Extra data":
                fix = "each value on a line of its own, or all of them in one list"
        elif found := next((each for each in _CONSTANT.finditer(text) if each[1]), None):
            before = text[: found.start()]
            line = line or before.count("\n") + 1
            problem += f" (column {len(before) - before.rfind(chr(10))})"
            fix = "write null for a missing value"
        where = f"{path}:{line}" if line else path
        raise UserError(f"malformed JSON: {problem}", where=where, fix=fix) from error


def require_object(value: object, where: str) -> dict[str, Any]:
    """A record that must be a JSON object.

    Raises:
        UserError: It is another value.
    """
    if not isinstance(value, dict):
        raise UserError(f"expected a JSON object, found {describe(value)}", where=where)
    return value

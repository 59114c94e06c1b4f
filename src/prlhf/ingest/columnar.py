"""JSON Lines, CSV and TSV read by columns, without a Python object for each value.

Arrow's readers are many times faster than a line at a time, but they do not say which line is at
fault, and accept some things that are no JSON. So they get only files that are plainly in order.
All others are declined, and `prlhf.ingest.files` reads them line by line, to the same values or to
an error that names the line.

Of CSV, Arrow splits records into fields. Where records begin and end is found here, from the
quotes, as Arrow does not tell the line of a record. Files are accepted only where every quote
stands at the edge of a field, or is one of two that mean one: then Arrow and Python's csv module
cannot understand them differently.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from prlhf.infra.errors import UserError
from prlhf.ingest.delimited import DELIMITERS, Dialect, find_dialect
from prlhf.ingest.files import LINES, Records, file_format, open_binary, unpacking

Numbers = np.ndarray[Any, np.dtype[np.int64]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]

BLOCK: Final = 2**23
"""Bytes read at a time: what bounds the memory besides that for the columns.

With blocks of 32 MiB, reading CSV took one and a half times the processor time.
"""

FIRST: Final = 100
"""JSON records whose values decide the type of a column."""

_MARK: Final = b"\xef\xbb\xbf"  # a byte-order mark, which may come before the first line
_SPACE: Final = b" \t\r\n"
_QUOTE, _LF, _CR = b'"\n\r'
# Of the constants that are no JSON, Arrow knows these and their negatives.
_CONSTANTS: Final = (re.compile(rb"NaN\s*[,}\]]"), re.compile(rb"Inf(?:inity)?\s*[,}\]]"))
_BEFORE_CONSTANT: Final = re.compile(rb"[:,\[]\s*-?\Z")


class _Declined(Exception):
    """The file is better read line by line."""


@dataclass(frozen=True)
class _Block:
    """Whole CSV records; empty lines are none."""

    text: bytes
    starts: Numbers  # where each record begins in `text`
    ends: Numbers  # where each ends, its line end left aside
    lines: Numbers  # the line that each begins on, from 0
    n_lines: int


def read_columns(path: Path, mapping: Mapping[str, str | None]) -> Records | None:
    """The mapped columns of a file as Arrow columns; None where `read_file` must read it.

    Declined are other formats and faults of any kind. Of JSON Lines also columns that mix types or
    that may not exist, and numbers that Python reads in another way; of fields that are not mapped
    only the syntax is looked at. Of CSV also quotes and carriage returns within a field that is not
    quoted, records of more than a block, and files that lack a column or have it twice.

    Args:
        path: The file.
        mapping: Our name -> the source's name, as in `columns.contract_rows`.
    """
    kind = file_format(path)
    if kind not in LINES and kind not in DELIMITERS:
        return None
    wanted = list(dict.fromkeys(name for name in mapping.values() if name is not None))
    try:
        with unpacking(path), open_binary(path) as file:
            if kind in LINES:
                return _json_lines(file, str(path), mapping)
            return _delimited(file, str(path), wanted, find_dialect(path, wanted))
    except (_Declined, UserError):
        return None


def _gathered(
    place: str,
    names: list[str],
    table: pa.Table,
    numbers: list[Numbers],
    *,
    typed: bool,
    notes: tuple[str, ...] = (),
) -> Records:
    columns: dict[str, Any] = {name: table.column(name) for name in table.column_names}
    # A numpy array is no `Sequence` by type, but does all that `Records` needs of one.
    found: Any = np.concatenate(numbers)
    return Records(place, "line", found, names, columns, typed, notes)


def _parsed(read: Callable[[], pa.Table], rows: int) -> pa.Table:
    """What Arrow reads, which must be whole and have this many rows."""
    try:
        table = read()
        table.validate(full=True)
    except pa.ArrowInvalid as error:
        raise _Declined from error
    if table.num_rows != rows:
        raise _Declined
    return table


def _part_size(longest: int) -> int:
    """Bytes of a part of a block for Arrow: the longest record must fit in it, with its end."""
    return max(2**21, longest + 2)


def _require_utf8(block: bytes) -> None:
    """Make sure that all of it is UTF-8, and not only the columns that are read."""
    ends = pa.array([0, len(block)], pa.int32()).buffers()[1]
    try:
        text = pa.Array.from_buffers(pa.string(), 1, [None, ends, pa.py_buffer(block)])
        text.validate(full=True)
    except pa.ArrowInvalid as error:
        raise _Declined from error


# ---------------------------------------------------------------- JSON Lines


def _json_lines(file: io.BufferedIOBase, place: str, mapping: Mapping[str, str | None]) -> Records:
    tables: list[pa.Table] = []
    numbers: list[Numbers] = []
    schema: pa.Schema | None = None
    names: dict[str, None] = {}
    lines_before = 0
    for block in _line_blocks(file):
        if schema is None:
            records = _first_records(block)
            names |= dict.fromkeys(name for record in records for name in record)
            schema = _schema(records, mapping)
        _require_utf8(block)
        # NaN or Infinity as a value: within a text it seldom looks like one.
        if any(
            _BEFORE_CONSTANT.search(block, max(0, found.start() - 64), found.start())
            for constant in _CONSTANTS
            for found in constant.finditer(block)
        ):
            raise _Declined
        where, count, longest = _object_lines(block)
        # Every line begins and ends an object, and there are as many objects as lines: one each.
        tables.append(_parse_json(block, schema, longest, len(where)))
        numbers.append(where + lines_before + 1)
        lines_before += count
    if schema is None:
        raise _Declined
    table = pa.concat_tables(tables)
    names |= dict.fromkeys(
        name for name in schema.names if table.column(name).null_count < table.num_rows
    )
    if not names.keys() >= set(schema.names) or _differ_in_python(table):
        raise _Declined
    return _gathered(place, list(names), table, numbers, typed=True)


def _line_blocks(file: io.BufferedIOBase) -> Iterator[bytes]:
    """The content, without a byte-order mark, in pieces that end where a line does."""
    rest: list[bytes] = []
    piece = file.read(BLOCK).removeprefix(_MARK)
    while piece:
        cut = piece.rfind(b"\n") + 1
        if cut:
            yield b"".join([*rest, piece[:cut]])
            rest = []
        rest.append(piece[cut:])
        piece = file.read(BLOCK)
    if last := b"".join(rest):
        yield last


def _first_records(block: bytes) -> list[dict[str, Any]]:
    lines = (line for line in re.finditer(rb"[^\n]+", block) if line.group().strip(_SPACE))
    try:
        records = [json.loads(line.group()) for line in islice(lines, FIRST)]
    except (ValueError, RecursionError) as error:
        raise _Declined from error
    return [record for record in records if isinstance(record, dict)]


def _schema(records: list[dict[str, Any]], mapping: Mapping[str, str | None]) -> pa.Schema:
    """The type of each mapped column by its use and its first value."""
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    kinds: dict[str, pa.DataType] = {}
    for ours, theirs in mapping.items():
        if theirs is None:
            continue
        first = next((r[theirs] for r in records if r.get(theirs) is not None), None)
        kind = pa.string()
        if ours == "weight" or (ours == "time" and isinstance(first, int | float)):
            kind = pa.float64()
        elif ours in ("user_id", "group", "unit") and isinstance(first, int):
            kind = pa.int64()
        elif ours == "prompt" and isinstance(first, list):
            kind = messages
        if kinds.setdefault(theirs, kind) != kind:
            raise _Declined
    if not records:
        raise _Declined
    return pa.schema(list(kinds.items()))


def _object_lines(block: bytes) -> tuple[Numbers, int, int]:
    """Which lines hold an object, how many lines there are, and the bytes of the longest."""
    # All lines but blank ones must begin with a brace and end with one. Within an object, a line
    # that ends with one cannot be followed by a line that begins with one.
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == _LF)
    if not block.endswith(b"\n"):
        ends = np.append(ends, len(data))
    starts = np.concatenate([[0], ends[:-1] + 1])
    whole = (data[starts] == ord("{")) & (data[ends - 1] == ord("}"))
    for index in np.flatnonzero(~whole):
        line = block[starts[index] : ends[index]].strip(_SPACE)
        whole[index] = line.startswith(b"{") and line.endswith(b"}")
        if line and not whole[index]:
            raise _Declined
    return np.flatnonzero(whole), len(ends), int((ends - starts).max())


def _parse_json(block: bytes, schema: pa.Schema, longest: int, rows: int) -> pa.Table:
    parse = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    read = pa.json.ReadOptions(block_size=_part_size(longest))
    return _parsed(lambda: pa.json.read_json(pa.BufferReader(block), read, parse), rows)


def _differ_in_python(table: pa.Table) -> bool:
    """Whether a number came out as it does not in Python: too large a whole one, or minus zero."""
    floats = [column.to_numpy() for column in table.columns if pa.types.is_floating(column.type)]
    return any((np.isinf(each) | ((each == 0) & np.signbit(each))).any() for each in floats)


# ---------------------------------------------------------------- CSV and TSV


def _delimited(file: io.BufferedIOBase, place: str, wanted: list[str], dialect: Dialect) -> Records:
    if dialect.skipped:
        raise _Declined
    delimiter = dialect.delimiter
    header: list[str] = []
    tables: list[pa.Table] = []
    numbers: list[Numbers] = []
    lines_before = 0
    for block in _record_blocks(file, delimiter):
        _require_utf8(block.text)
        skipped = 0
        if not header and len(block.starts):
            header = _header(block, delimiter)
            if any(header.count(name) != 1 for name in wanted):
                raise _Declined
            skipped = 1
        if len(block.starts) > skipped:
            tables.append(_parse_csv(block, skipped, header, wanted, delimiter))
            numbers.append(block.lines[skipped:] + lines_before + 1)
        lines_before += block.n_lines
    if not tables:
        raise _Declined
    table = pa.concat_tables(tables)
    return _gathered(place, header, table, numbers, typed=False, notes=dialect.notes)


def _record_blocks(file: io.BufferedIOBase, delimiter: str) -> Iterator[_Block]:
    """The content, without a byte-order mark, in pieces that end where a record does."""
    rest = b""
    piece = file.read(BLOCK).removeprefix(_MARK)
    while piece:
        following = file.read(BLOCK)
        text = rest + piece
        block = _records(text, delimiter, last=not following)
        yield block
        rest = text[len(block.text) :]
        piece = following


def _records(text: bytes, delimiter: str, *, last: bool) -> _Block:
    """The whole records in `text`, which begins with one."""
    data = np.frombuffer(text, np.uint8)
    quotes = np.flatnonzero(data == _QUOTE)
    line_ends = np.flatnonzero(data == _LF)
    if last and not text.endswith(b"\n"):
        line_ends = np.append(line_ends, len(data))
    # What comes after an odd number of quotes stands within a field.
    (outside,) = np.nonzero(np.searchsorted(quotes, line_ends) % 2 == 0)
    if not len(outside) or (last and len(quotes) % 2):
        raise _Declined
    ends = line_ends[outside]
    size = min(int(ends[-1]) + 1, len(text))
    _require_plain(data[:size], quotes[quotes < size], ord(delimiter))
    starts = np.concatenate([[0], ends[:-1] + 1])
    lines = np.concatenate([[0], outside[:-1] + 1])
    n_lines = int(outside[-1]) + 1
    ends = ends - ((ends > starts) & (data[ends - 1] == _CR))
    whole = ends > starts
    return _Block(text[:size], starts[whole], ends[whole], lines[whole], n_lines)


def _require_plain(data: Bytes, quotes: Numbers, delimiter: int) -> None:
    """Make sure that quotes open and close whole fields, and nothing else ends a line but LF."""
    line_end = np.array([_LF], np.uint8)
    framed = np.concatenate([line_end, data, line_end])
    before, after = framed[quotes[::2]], framed[quotes[1::2] + 2]
    opening = (before == delimiter) | (before == _LF) | (before == _QUOTE)
    closing = (after == delimiter) | (after == _LF) | (after == _CR) | (after == _QUOTE)
    returns = np.flatnonzero(data == _CR)
    returns = returns[np.searchsorted(quotes, returns) % 2 == 0]
    if not (opening.all() and closing.all() and (framed[returns + 2] == _LF).all()):
        raise _Declined


def _header(block: _Block, delimiter: str) -> list[str]:
    text = block.text[block.starts[0] : block.ends[0]].decode()
    try:
        return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise _Declined from error


def _parse_csv(
    block: _Block, skipped: int, header: list[str], wanted: list[str], delimiter: str
) -> pa.Table:
    """The wanted columns of a block's records, the first few left aside; empty fields missing."""
    start = int(block.starts[skipped])
    # Arrow would take it for the mark at the beginning of a file, and drop it.
    if block.text.startswith(_MARK, start):
        raise _Declined
    # Names of its own: those of other columns may come twice.
    names = [str(number) for number in range(len(header))]
    places = [names[header.index(name)] for name in wanted]
    longest = int((block.ends - block.starts).max()) + 1
    read = pa.csv.ReadOptions(column_names=names, block_size=_part_size(longest))
    parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    convert = pa.csv.ConvertOptions(
        include_columns=places,
        column_types=dict.fromkeys(places, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
    )
    content = pa.BufferReader(pa.py_buffer(block.text).slice(start))
    rows = len(block.starts) - skipped
    table = _parsed(lambda: pa.csv.read_csv(content, read, parse, convert), rows)
    return table.rename_columns(wanted)

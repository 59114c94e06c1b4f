"""JSON Lines read by columns, without a Python object for each value.

Arrow's reader is many times faster than a line at a time, but does not say which line is at fault,
and lets pass some things that are no JSON. So it is asked for files that are plainly in order. All
others are declined, and `prlhf.data.files` reads them line by line, to the same values or to an
error that names the line.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prlhf.data import blocks
from prlhf.data.files import Records, file_format, open_binary

if TYPE_CHECKING:
    import io

    import numpy as np
    import pyarrow as pa

FIRST: Final = 100
"""Records that tell the type of a column which may be of one or another."""

_SPACE: Final = b" \t\r\n"
# Of the constants that are no JSON, Arrow knows these and their negatives.
_CONSTANTS: Final = (re.compile(rb"NaN\s*[,}\]]"), re.compile(rb"Inf(?:inity)?\s*[,}\]]"))
_BEFORE_CONSTANT: Final = re.compile(rb"[:,\[]\s*-?\Z")


def read_columns(path: Path, mapping: Mapping[str, str | None]) -> Records | None:
    """The mapped columns of a JSON Lines file as Arrow columns; None where `read_file` must do it.

    Declined are: other formats, faults of any kind, columns that mix types or that may not exist,
    and numbers that Python reads in another way. Of fields that are not mapped only the syntax is
    looked at.

    Args:
        path: The file.
        mapping: Our name -> the source's name, as in `columns.contract_rows`.
    """
    if file_format(path) != ".jsonl":
        return None
    try:
        with open_binary(path) as file:
            return _read(file, str(path), mapping)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return None


def _read(file: io.BufferedIOBase, place: str, mapping: Mapping[str, str | None]) -> Records | None:
    import numpy as np
    import pyarrow as pa

    tables: list[pa.Table] = []
    numbers: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    schema: pa.Schema | None = None
    names: dict[str, None] = {}
    lines_before = 0
    for block in _blocks(file):
        if schema is None:
            records = _first_records(block)
            names |= dict.fromkeys(name for record in records for name in record)
            schema = _schema(records, mapping)
            if schema is None:
                return None
        if _has_constant(block) or not blocks.is_utf8(block):
            return None
        lines = _object_lines(block)
        if lines is None:
            return None
        where, count, longest = lines
        table = _parse(block, schema, longest)
        # Every line begins and ends an object, and there are as many objects as lines: one each.
        if table is None or table.num_rows != len(where):
            return None
        tables.append(table)
        numbers.append(where + lines_before + 1)
        lines_before += count
    if schema is None:
        return None
    table = pa.concat_tables(tables)
    names |= dict.fromkeys(
        name for name in schema.names if table.column(name).null_count < table.num_rows
    )
    if not names.keys() >= set(schema.names) or _differ_in_python(table):
        return None
    columns: dict[str, Any] = {name: table.column(name) for name in schema.names}
    # numpy's array is no `Sequence` by name, but has all that is asked of one here.
    found: Any = np.concatenate(numbers)
    return Records(place, "line", found, list(names), columns)


def _blocks(file: io.BufferedIOBase) -> Iterator[bytes]:
    """The content, without a byte-order mark, in pieces that end where a line does."""
    rest: list[bytes] = []
    piece = file.read(blocks.BLOCK).removeprefix(blocks.MARK)
    while piece:
        cut = piece.rfind(b"\n") + 1
        if cut:
            yield b"".join([*rest, piece[:cut]])
            rest = []
        rest.append(piece[cut:])
        piece = file.read(blocks.BLOCK)
    if last := b"".join(rest):
        yield last


def _first_records(block: bytes) -> list[dict[str, Any]]:
    """The first records, as far as they are some."""
    lines = (line for line in re.finditer(rb"[^\n]+", block) if line.group().strip(_SPACE))
    try:
        records = [json.loads(line.group()) for line in islice(lines, FIRST)]
    except (ValueError, RecursionError):
        return []
    return [record for record in records if isinstance(record, dict)]


def _schema(records: list[dict[str, Any]], mapping: Mapping[str, str | None]) -> pa.Schema | None:
    """The type of each mapped column by its use and its first values; None if unclear."""
    import pyarrow as pa

    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    kinds: dict[str, pa.DataType] = {}
    for ours, theirs in mapping.items():
        if theirs is None:
            continue
        first = next((r[theirs] for r in records if r.get(theirs) is not None), None)
        kind = pa.string()
        if ours == "weight":
            kind = pa.float64()
        elif ours in ("user_id", "group") and isinstance(first, int):
            kind = pa.int64()
        elif ours == "prompt" and isinstance(first, list):
            kind = messages
        if kinds.setdefault(theirs, kind) != kind:
            return None
    return pa.schema(list(kinds.items())) if records else None


def _has_constant(block: bytes) -> bool:
    """Whether NaN or Infinity may stand there as a value: in a text it seldom looks like one."""
    return any(
        _BEFORE_CONSTANT.search(block, max(0, found.start() - 64), found.start())
        for constant in _CONSTANTS
        for found in constant.finditer(block)
    )


def _object_lines(block: bytes) -> tuple[np.ndarray[Any, np.dtype[np.int64]], int, int] | None:
    """Which lines hold an object, how many lines there are, and the bytes of the longest.

    None unless all lines but blank ones begin with a brace and end with one. Within an object no
    line can end so and the next begin so.
    """
    import numpy as np

    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    if not block.endswith(b"\n"):
        ends = np.append(ends, len(data))
    starts = np.concatenate([[0], ends[:-1] + 1])
    whole = (data[starts] == ord("{")) & (data[ends - 1] == ord("}"))
    for index in np.flatnonzero(~whole):
        line = block[starts[index] : ends[index]].strip(_SPACE)
        if line.startswith(b"{") and line.endswith(b"}"):
            whole[index] = True
        elif line:
            return None
    return np.flatnonzero(whole), len(ends), int((ends - starts).max())


def _parse(block: bytes, schema: pa.Schema, longest: int) -> pa.Table | None:
    import pyarrow as pa
    import pyarrow.json

    try:
        table = pa.json.read_json(
            pa.BufferReader(block),
            read_options=pa.json.ReadOptions(block_size=blocks.part_size(longest)),
            parse_options=pa.json.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="ignore"
            ),
        )
    except pa.ArrowInvalid:
        return None
    return table if blocks.is_valid(table) else None


def _differ_in_python(table: pa.Table) -> bool:
    """Whether a number came out as it does not in Python: too large a whole one, or minus zero."""
    import numpy as np
    import pyarrow as pa

    for name in table.schema.names:
        if pa.types.is_floating(table.schema.field(name).type):
            numbers = table.column(name).to_numpy()
            if (np.isinf(numbers) | ((numbers == 0) & np.signbit(numbers))).any():
                return True
    return False

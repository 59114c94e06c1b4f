"""CSV and TSV read by columns, without a Python object for each value.

Arrow's reader splits records into fields. Where records begin and end is found here, from the
quotes: that gives each record its line, which Arrow does not tell. A file is taken so only where
every quote stands at the edge of a field, or is one of two that mean one: then Arrow and Python's
csv module cannot understand it differently. All others are declined, and `prlhf.data.files` reads
them row by row, to the same values or to an error that names the line.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prlhf.data import blocks
from prlhf.data.files import Records, file_format, open_binary

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Numbers = np.ndarray[Any, np.dtype[np.int64]]

DELIMITERS: Final = {".csv": ",", ".tsv": "\t"}

_QUOTE, _LF, _CR = b'"\n\r'


@dataclass(frozen=True)
class _Block:
    """Whole records.

    Attributes:
        text: Their bytes.
        starts: Where each record begins in `text`; empty lines are none.
        ends: Where each ends, its line end left aside.
        lines: The line that each begins on, from 0.
        n_lines: How many lines there are.
    """

    text: bytes
    starts: Numbers
    ends: Numbers
    lines: Numbers
    n_lines: int


class _Unclear(Exception):
    """The file is better read row by row."""


def read_columns(path: Path, mapping: Mapping[str, str | None]) -> Records | None:
    """The mapped columns of a CSV or TSV file as Arrow columns; None where `read_file` must do it.

    Declined are: other formats, faults of any kind, quotes and carriage returns within a field that
    is not quoted, records of more than a block, and files that lack a column or have it twice.

    Args:
        path: The file.
        mapping: Our name -> the source's name, as in `columns.contract_rows`.
    """
    delimiter = DELIMITERS.get(file_format(path))
    if delimiter is None:
        return None
    try:
        with open_binary(path) as file:
            return _read(file, str(path), mapping, delimiter)
    except (_Unclear, EOFError, gzip.BadGzipFile, zlib.error):
        return None


def _read(
    file: io.BufferedIOBase, place: str, mapping: Mapping[str, str | None], delimiter: str
) -> Records:
    import numpy as np
    import pyarrow as pa

    wanted = list(dict.fromkeys(name for name in mapping.values() if name is not None))
    header: list[str] = []
    tables: list[pa.Table] = []
    numbers: list[Numbers] = []
    lines_before = 0
    for block in _blocks(file, delimiter):
        if not blocks.is_utf8(block.text):
            raise _Unclear
        skipped = 0
        if not header and len(block.starts):
            header = _header(block, delimiter)
            if any(header.count(name) != 1 for name in wanted):
                raise _Unclear
            skipped = 1
        if len(block.starts) > skipped:
            tables.append(_parse(block, skipped, header, wanted, delimiter))
            numbers.append(block.lines[skipped:] + lines_before + 1)
        lines_before += block.n_lines
    if not tables:
        raise _Unclear
    table = pa.concat_tables(tables)
    columns: dict[str, Any] = {name: table.column(name) for name in wanted}
    # numpy's array is no `Sequence` by name, but has all that is asked of one here.
    found: Any = np.concatenate(numbers)
    return Records(place, "line", found, header, columns, typed=False)


def _blocks(file: io.BufferedIOBase, delimiter: str) -> Iterator[_Block]:
    """The content, without a byte-order mark, in pieces that end where a record does."""
    rest = b""
    piece = file.read(blocks.BLOCK).removeprefix(blocks.MARK)
    while piece:
        following = file.read(blocks.BLOCK)
        text = rest + piece
        block = _records(text, delimiter, last=not following)
        yield block
        rest = text[len(block.text) :]
        piece = following


def _records(text: bytes, delimiter: str, *, last: bool) -> _Block:
    """The records that `text`, which begins with one, has the whole of."""
    import numpy as np

    data = np.frombuffer(text, np.uint8)
    quotes = np.flatnonzero(data == _QUOTE)
    line_ends = np.flatnonzero(data == _LF)
    if last and not text.endswith(b"\n"):
        line_ends = np.append(line_ends, len(data))
    # An odd number of quotes before it: a line end, or whatever it is, stands within a field.
    (outside,) = np.nonzero(np.searchsorted(quotes, line_ends) % 2 == 0)
    if not len(outside) or (last and len(quotes) % 2):
        raise _Unclear
    ends = line_ends[outside]
    size = min(int(ends[-1]) + 1, len(text))
    _require_plain(data[:size], quotes[quotes < size], ord(delimiter))
    starts = np.concatenate([[0], ends[:-1] + 1])
    lines = np.concatenate([[0], outside[:-1] + 1])
    n_lines = int(outside[-1]) + 1
    ends = ends - ((ends > starts) & (data[ends - 1] == _CR))
    whole = ends > starts
    return _Block(text[:size], starts[whole], ends[whole], lines[whole], n_lines)


def _require_plain(
    data: np.ndarray[Any, np.dtype[np.uint8]], quotes: Numbers, delimiter: int
) -> None:
    """Make sure that quotes open and close whole fields, and nothing else ends a line but LF."""
    import numpy as np

    line_end = np.array([_LF], np.uint8)
    framed = np.concatenate([line_end, data, line_end])
    before, after = framed[quotes[::2]], framed[quotes[1::2] + 2]
    opening = (before == delimiter) | (before == _LF) | (before == _QUOTE)
    closing = (after == delimiter) | (after == _LF) | (after == _CR) | (after == _QUOTE)
    returns = np.flatnonzero(data == _CR)
    returns = returns[np.searchsorted(quotes, returns) % 2 == 0]
    if not (opening.all() and closing.all() and (framed[returns + 2] == _LF).all()):
        raise _Unclear


def _header(block: _Block, delimiter: str) -> list[str]:
    text = block.text[block.starts[0] : block.ends[0]].decode()
    try:
        return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise _Unclear from error


def _parse(
    block: _Block, skipped: int, header: list[str], wanted: list[str], delimiter: str
) -> pa.Table:
    """The wanted columns of a block's records, the first few left aside; empty fields missing."""
    import pyarrow as pa
    import pyarrow.csv

    start = int(block.starts[skipped])
    # Arrow would drop it from what it takes for the beginning of a file.
    if block.text.startswith(blocks.MARK, start):
        raise _Unclear
    # Names of its own: those of other columns may come twice.
    names = [str(number) for number in range(len(header))]
    places = [names[header.index(name)] for name in wanted]
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(pa.py_buffer(block.text).slice(start)),
            read_options=pa.csv.ReadOptions(
                column_names=names,
                block_size=blocks.part_size(int((block.ends - block.starts).max()) + 1),
            ),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                include_columns=places,
                column_types=dict.fromkeys(places, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid as error:
        raise _Unclear from error
    if table.num_rows != len(block.starts) - skipped or not blocks.is_valid(table):
        raise _Unclear
    return table.rename_columns(wanted)

"""CSV and TSV, row by row; and what separates the fields, whatever the file's name says."""

import csv
import re
import sys
from array import array
from collections.abc import Collection, Iterable
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from prlhf.infra.errors import UserError
from prlhf.ingest.files import Records, file_format, text_lines

DELIMITERS: Final = {".csv": ",", ".tsv": "\t"}
"""By the suffix of a file's name, what is expected to separate the fields."""

HEAD: Final = 20
"""Lines in which the header is looked for."""

RENAME: Final = "rename or remove all but one"
"""What to do about columns of one name."""

_NAMES: Final = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
# By which Excel is told what separates the fields.
_GIVEN: Final = re.compile(r'"?sep=([,;\t|])"?\s*')
# What Python's csv module says of faults, and what is meant.
_FAULTS: Final = {
    "new-line character": "a carriage return outside of quotes",
    "unexpected end of data": "unexpected end of data: a quote is not closed",
}


class Dialect(NamedTuple):
    """How a delimited file is written.

    Attributes:
        delimiter: What separates the fields.
        skipped: Lines before the header that name the delimiter.
        notes: What to say about it; nothing if it is what the file's name says.
    """

    delimiter: str
    skipped: int
    notes: tuple[str, ...]


def find_dialect(path: Path, wanted: Collection[str]) -> Dialect:
    """How a file is written, told from its header.

    It is the delimiter by which the header has all `wanted` columns; or the one that the file's
    name says, if that is in the header; or the one that gives most columns.

    Raises:
        UserError: The file is damaged or no UTF-8 text.
    """
    usual = DELIMITERS[file_format(path)]
    lines = list(islice(text_lines(path), HEAD))
    start, first = next(((n, line) for n, line in enumerate(lines, 1) if line.strip()), (1, ""))
    if given := _GIVEN.fullmatch(first):
        return Dialect(
            given[1], start, (f"its first line says: {_NAMES[given[1]]} between fields",)
        )
    headers = {mark: _header(lines, mark) for mark in (usual, *_NAMES)}
    fitting = [mark for mark, names in headers.items() if wanted and set(wanted) <= set(names)]
    if fitting:
        mark = fitting[0]
    elif len(headers[usual]) > 1:
        mark = usual
    else:
        mark = max(headers, key=lambda each: len(headers[each]))
    notes = () if mark == usual else (f"read with {_NAMES[mark]} between fields",)
    return Dialect(mark, 0, notes)


def read_delimited(path: Path, wanted: Collection[str]) -> Records:
    """The `wanted` columns of a CSV or TSV file, as far as it has them.

    Raises:
        UserError: It is damaged, a row has more or fewer fields than the header, or a column stands
            twice.
    """
    # Without this, a cell over 128 kB is an error of the csv module's own.
    csv.field_size_limit(sys.maxsize)
    delimiter, skipped, notes = find_dialect(path, wanted)
    lines = islice(text_lines(path), skipped, None)
    # `strict` makes a stray or unclosed quote an error instead of a merged row.
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    start = skipped + 1
    try:
        header = next((row for row in reader if row), [])
        columns: dict[str, list[str | None]] = {name: [] for name in wanted if name in header}
        for name in columns:
            if (count := header.count(name)) > 1:
                where = f"{path}:{skipped + reader.line_num}"
                raise UserError(f'has {count} columns named "{name}"', where=where, fix=RENAME)
        targets = [(column, header.index(name)) for name, column in columns.items()]
        numbers = array("q")
        start = skipped + reader.line_num + 1
        for row in reader:
            if row:
                if len(row) != len(header):
                    raise UserError(
                        f"has {len(row)} fields where the header has {len(header)}",
                        where=f"{path}:{start}",
                        fix=f"texts with {_NAMES[delimiter]} or line ends in them need quotes",
                    )
                numbers.append(start)
                for column, place in targets:
                    column.append(row[place] or None)
            start = skipped + reader.line_num + 1
    except csv.Error as error:
        problem = next((said for part, said in _FAULTS.items() if part in str(error)), str(error))
        raise UserError(
            f"malformed row: {problem}",
            where=f"{path}:{start}",
            fix="check its quotes and line ends",
        ) from error
    return Records(str(path), "line", numbers, header, dict(columns), typed=False, notes=notes)


def _header(lines: Iterable[str], delimiter: str) -> list[str]:
    """The first row of a file; empty if there is none, or its quotes do not fit."""
    try:
        return next((row for row in csv.reader(lines, delimiter=delimiter, strict=True) if row), [])
    except csv.Error:
        return []

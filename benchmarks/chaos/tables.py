"""Files of preference pairs, damaged in one or a few ways: what `files` and `cli` read."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.chaos.damage import BYTES, STRUCTURAL, Row


@dataclass
class Feedback:
    """What a trial reads, and what is known of it from how it was made.

    Attributes:
        path: The file or directory.
        about: How it came about, in words.
        columns: Changes of the column mapping.
        delimiter: Of the delimited files among it.
        damaged: Whether bytes were changed, so that only the file itself tells its rows.
        rows: What was written, in order, to a file that is not damaged.
    """

    path: Path
    about: list[str] = field(default_factory=list)
    columns: dict[str, str | None] = field(default_factory=dict)
    delimiter: str = ","
    damaged: bool = False
    rows: list[Row] = field(default_factory=list)


def write(random: Random, directory: Path) -> Feedback:
    """One data set: seeds of all formats, with up to three structural and three byte mutations."""
    rows = seed_rows(random)
    made = Feedback(directory)
    rows = _optional(random, rows, made)
    for _ in range(random.choice((0, 0, 1, 1, 1, 2, 3))):
        name = random.choice(list(STRUCTURAL))
        made.about.append(name)
        rows = STRUCTURAL[name](random, rows)
    name = random.choice(list(FORMATS))
    kind, suffix = FORMATS[name], f".{name.partition(' ')[0]}"
    made.about.insert(0, name)
    if random.random() < 0.08:
        return _directory(random, rows, directory, made)
    made.rows = rows
    content = kind(random, rows, made)
    if random.random() < 0.35:
        content = _bytes(random, content, made)
    if random.random() < 0.1:
        content, suffix = _packed(random, content, suffix, made)
    if random.random() < 0.02:
        suffix = random.choice((".csv", ".json", ".parquet", ".txt", ".xlsx", "", ".JSONL", ".gz"))
        made.about.append(f"called {suffix or 'nothing'}")
        made.damaged = True
    made.path = directory / f"feedback{suffix}"
    made.path.write_bytes(content)
    return made


def seed_rows(random: Random) -> list[Row]:
    """Sound judgements, each with a text of its own in `chosen` that tells its row."""
    users, prompts = random.randint(3, 6), random.randint(6, 10)
    each = random.randint(5, prompts)
    return [
        {
            "user_id": f"user {user}",
            "prompt": f"question {(user + turn) % prompts}?",
            "chosen": f"answer {user} {turn} of many words",
            "rejected": f"no {turn}",
        }
        for user in range(users)
        for turn in range(each)
    ]


def _optional(random: Random, rows: list[Row], made: Feedback) -> list[Row]:
    makers: dict[str, Callable[[int], Any]] = {
        "user_text": lambda index: f"I am person {index % 4}",
        "weight": lambda index: random.choice((1, 0.5, 2.0)),
        "group": lambda index: index % 2,
        "unit": lambda index: f"dialogue {index % 9}",
        "time": lambda index: f"2024-01-{1 + index % 28:02}",
    }
    for name, make in makers.items():
        if random.random() < 0.12:
            made.columns[name] = name
            rows = [row | {name: make(index)} for index, row in enumerate(rows)]
    return rows


# -- formats ---------------------------------------------------------------------------------------


def _json_lines(random: Random, rows: list[Row], made: Feedback) -> bytes:
    ascii_only = random.random() < 0.5
    end = random.choice(("\n", "\n", "\n", "\r\n", "\n\n", "\n \n"))
    return _encoded("".join(json.dumps(row, ensure_ascii=ascii_only) + end for row in rows))


def _json_list(random: Random, rows: list[Row], made: Feedback) -> bytes:
    return _encoded(json.dumps(rows, indent=random.choice((None, 1)), ensure_ascii=False))


def _json_object(random: Random, rows: list[Row], made: Feedback) -> bytes:
    name = random.choice(("data", "rows", "feedback"))
    more: Row = random.choice(({}, {"version": 1}, {"other": []}))
    return _encoded(json.dumps({name: rows, **more}))


def _delimited(delimiter: str) -> Callable[[Random, list[Row], Feedback], bytes]:
    def make(random: Random, rows: list[Row], made: Feedback) -> bytes:
        made.delimiter = delimiter
        end = random.choice(("\n", "\n", "\r\n", "\r"))
        quoting: Any = random.choice((csv.QUOTE_MINIMAL, csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
        stream = io.StringIO()
        writer = csv.writer(stream, delimiter=delimiter, lineterminator=end, quoting=quoting)
        if delimiter == ";" and random.random() < 0.2:
            stream.write(f"sep=;{end}")
        names = list(dict.fromkeys(name for row in rows for name in row))
        twice = random.random() < 0.03 and names
        writer.writerow([*names, names[-1]] if twice else names)
        for row in rows:
            cells = [row.get(name) for name in names]
            if random.random() < 0.005:
                made.damaged = True
                cells = random.choice((cells[:-1], [*cells, "more"], []))
            writer.writerow([*cells, cells[-1]] if twice and cells else cells)
        return _encoded(stream.getvalue())

    return make


def _parquet(random: Random, rows: list[Row], made: Feedback) -> bytes:
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        try:
            column = pa.array(values)
        except (pa.ArrowException, OverflowError, ValueError, TypeError):
            column = pa.array([_utf8(value) for value in values], pa.string())
        if random.random() < 0.1 and pa.types.is_string(column.type):
            column = random.choice(
                (
                    column.dictionary_encode(),
                    column.cast(pa.large_string()),
                    column.cast(pa.binary()),
                )
            )
        columns[name] = column
    stream = io.BytesIO()
    size = random.choice((None, 7))
    pq.write_table(pa.table(columns), stream, row_group_size=size)
    return stream.getvalue()


FORMATS: Final[Mapping[str, Callable[[Random, list[Row], Feedback], bytes]]] = {
    "jsonl": _json_lines,
    "jsonl ": _json_lines,
    "ndjson": _json_lines,
    "json": _json_list,
    "json lines": _json_lines,
    "json object": _json_object,
    "csv": _delimited(","),
    "csv semicolons": _delimited(";"),
    "csv tabs": _delimited("\t"),
    "csv bars": _delimited("|"),
    "tsv": _delimited("\t"),
    "tsv commas": _delimited(","),
    "parquet": _parquet,
}
"""By the suffix that they go by, and what is special about them."""


def _utf8(value: Any) -> str | None:
    return None if value is None else str(value).encode(errors="replace").decode()


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _packed(random: Random, content: bytes, suffix: str, made: Feedback) -> tuple[bytes, str]:
    way = random.choice(("gz", "gz", "gz damaged", "zst", "not gz"))
    made.about.append(way)
    if way == "zst":
        return bytes(pa.compress(content, "zstd", asbytes=True)), f"{suffix}.zst"
    if way == "not gz":
        return content, f"{suffix}.gz"
    packed = gzip.compress(content, mtime=0)
    if way == "gz damaged":
        made.damaged = True
        packed = _bytes(random, packed, made)
    return packed, f"{suffix}.gz"


def _directory(random: Random, rows: list[Row], directory: Path, made: Feedback) -> Feedback:
    """Several files, some of which may be of no known kind."""
    made.path = directory / "store"
    made.path.mkdir()
    made.about[0] = "directory"
    half = len(rows) // 2
    for number, part in enumerate((rows[:half], rows[half:])):
        name = random.choice(("jsonl", "ndjson", "json", "csv", "tsv", "parquet", "jsonl"))
        path = made.path / f"part-{number}.{name}"
        if random.random() < 0.2:
            path = made.path / "2025" / path.name
            path.parent.mkdir(exist_ok=True)
        path.write_bytes(FORMATS[name](random, part, made))
    for name in ("notes.txt", "old.xlsx", ".hidden.jsonl", "empty.jsonl", "README.md", "b.csv.bak"):
        if random.random() < 0.12:
            made.about.append(name)
            (made.path / name).write_bytes(b"" if "empty" in name else b"some text\n")
    return made


def _bytes(random: Random, content: bytes, made: Feedback) -> bytes:
    made.damaged = True
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        name = random.choice(list(BYTES))
        made.about.append(name)
        content = BYTES[name](random, content)
    return content

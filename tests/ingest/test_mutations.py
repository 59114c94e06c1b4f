"""Damaged files of every format are refused in one line, or every row in them is accounted for.

The mutations are those that files meet on their way: bytes that flip, get lost or come twice,
exports in another encoding or with another delimiter, structures within cells, another name.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prlhf.infra.errors import UserError
from prlhf.ingest.files import PACKED, open_binary
from prlhf.ingest.sources import read_local
from prlhf.ingest.tables import READERS

NAMES = ("user_id", "prompt", "chosen", "rejected", "user_text", "weight", "group", "time")
TURNS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
VALUES: list[Any] = [
    *[None, "", " ", "nan", "NULL", 0, -1, 1.5, 1e300, True, [], {}, ["a"], 10**30, "2025-01-01"],
    *["\ufeff", "\u2028", "\x00", "x" * 3000, "é 漢字 🙂", 'a"b', "a,b;c\td|e", "a\r\nb", "=1+1"],
    *[
        TURNS,
        TURNS[:1],
        TURNS[1:],
        TURNS[0],
        json.dumps(TURNS),
        repr(TURNS),
        json.dumps(TURNS)[:-3],
    ],
    [{"from": "human", "value": "Why?"}],
    [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}],
    [{"role": "tool", "content": "x"}, *TURNS],
    "\n\nHuman: Why?\n\nAssistant: So.",
]
JUNK = [
    *[
        b"\x00",
        b"\xff",
        b"\xe9",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\r",
        b"\n",
        b"\r\n",
        b'"',
        b"'",
    ],
    *[
        b",",
        b";",
        b"\t",
        b"|",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b"\\",
        b"\\ud800",
        b"NaN",
        b"Infinity",
    ],
    *[b"null", b"1e999", b"9" * 5000, b"[" * 3000, b'{"a":' * 2000, b"sep=;\n", b"PAR1", b"chosen"],
]


def rows(rng: random.Random) -> list[dict[str, Any]]:
    """A few judgements, some with odd values."""
    found = []
    for number in range(rng.randint(1, 6)):
        row = dict.fromkeys(NAMES) | {
            "user_id": f"u{number % 2}",
            "prompt": "Why?",
            "chosen": f"Because of {number}.",
            "rejected": "No.",
            "weight": 1.0,
        }
        if rng.random() < 0.3:
            row[rng.choice(NAMES)] = rng.choice(VALUES)
        if rng.random() < 0.1:
            del row[rng.choice(NAMES)]
        found.append(row)
    return found


def as_lines(found: list[dict[str, Any]], rng: random.Random) -> bytes:
    return "".join(
        json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in found
    ).encode()


def as_document(found: list[dict[str, Any]], rng: random.Random) -> bytes:
    document = rng.choice([found, found, {"data": found}, {"a": found, "b": found}, found[0]])
    return json.dumps(document, indent=rng.choice([None, 1])).encode()


def as_cells(found: list[dict[str, Any]], rng: random.Random) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, NAMES, delimiter=rng.choice(",,;\t|"), restval="")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue().encode()


def as_table(found: list[dict[str, Any]], rng: random.Random) -> bytes:
    content = io.BytesIO()
    try:
        table = pa.Table.from_pylist([{name: row.get(name) for name in NAMES} for row in found])
        pq.write_table(table, content)
    except (pa.ArrowException, OverflowError, NotImplementedError):
        return as_lines(found, rng)  # mixed types: a Parquet file by name only
    return content.getvalue()


WRITERS: list[Callable[[list[dict[str, Any]], random.Random], bytes]] = [
    as_lines,
    as_document,
    as_cells,
    as_table,
]
SUFFIXES: dict[Any, list[str]] = {
    as_lines: [".jsonl", ".ndjson"],
    as_document: [".json"],
    as_cells: [".csv", ".tsv"],
    as_table: [".parquet"],
}


def damaged(content: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice([0, 0, 0, 0, 1, 1, 3])):
        place = rng.randint(0, len(content))
        cut = rng.choice([0, 0, 1, 2, 20])
        content = content[:place] + rng.choice([b"", *JUNK]) + content[place + cut :]
    if rng.random() < 0.1:
        content = content[: rng.randint(0, len(content))]
    if rng.random() < 0.05:
        content += content
    if rng.random() < 0.1:
        text = content.decode("utf-8", "replace")
        content = text.encode(rng.choice(["utf-16", "utf-16-le", "utf-32", "cp1252"]), "replace")
    return content


def case(directory: Path, seed: int) -> Path:
    """A file of some format, damaged in some way or not."""
    rng = random.Random(seed)
    writer = rng.choice(WRITERS)
    content = damaged(writer(rows(rng), rng), rng)
    kinds = list(READERS) if rng.random() < 0.1 else SUFFIXES[writer]
    suffix = rng.choice(kinds)
    pack = rng.choice(["", "", "", *PACKED])
    if pack:
        content = (
            gzip.compress(content, mtime=0)
            if pack == ".gz"
            else pa.compress(content, codec="zstd", asbytes=True)
        )
        if rng.random() < 0.2:
            content = damaged(content, rng)
    if rng.random() < 0.05:
        pack = ""
    path = directory / f"case{suffix}{pack}"
    path.write_bytes(content)
    return path


def rows_in(path: Path) -> int:
    """How many rows a readable file has, counted without the code that reads it."""
    with open_binary(path) as file:
        content = file.read()
    if ".parquet" in path.name:
        return pq.read_metadata(io.BytesIO(content)).num_rows
    text = content.decode("utf-8").removeprefix("\ufeff")
    lines = [line for line in text.split("\n") if line.strip()]
    if ".csv" in path.name or ".tsv" in path.name:
        counts = []
        for mark in ",;\t|":
            try:
                found = [
                    row for row in csv.reader(io.StringIO(text, newline=""), delimiter=mark) if row
                ]
            except csv.Error:
                continue
            found = found[1:] if found[0][0].startswith("sep=") else found
            if {"user_id", "prompt", "chosen", "rejected"} <= set(found[0]):
                counts.append(len(found) - 1)
        (count,) = counts
        return count
    try:
        document = json.loads(text)
    except ValueError:
        return len(lines)
    if isinstance(document, dict) and "user_id" not in document:
        (document,) = (value for value in document.values() if isinstance(value, list))
    return len(document) if isinstance(document, list) else 1


@pytest.fixture
def mapping(columns) -> dict[str, str | None]:
    return columns(**{name: name for name in NAMES})


@pytest.mark.parametrize("block", range(4))
def test_the_books_balance(tmp_path, mapping, capfd, block):
    """Each file is refused in one short line that names it, or all of its rows are there."""
    read = 0
    limit = sys.getrecursionlimit()
    for seed in range(block * 150, block * 150 + 150):
        path = case(tmp_path, seed)
        try:
            found = read_local(path, mapping)
        except UserError as error:
            (line,) = error.lines()
            assert line.startswith(str(path)), seed
            assert len(line) < 800, seed
        else:
            read += 1
            assert len(found) == rows_in(path), seed
            assert found["row"].is_monotonic_increasing, seed
            assert found["row"].is_unique, seed
            assert set(found["source"]) == {path.name}, seed
        path.unlink()
    assert read > 30, "the generator spoils too much"
    assert sys.getrecursionlimit() == limit
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert "Warning" not in said

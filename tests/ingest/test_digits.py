"""Ids that lost digits are refused, in files of all kinds; names that only look so are not."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prlhf.infra.errors import UserError
from prlhf.ingest.digits import first_inexact, first_rounded
from prlhf.ingest.sources import read_local

FIX = "(export the column as text; if it is a name, put a letter in front)"


def write(path: Path, users: list[Any]) -> Path:
    """A file of one judgement of each user, in the format of its name."""
    rows = [
        {"user_id": user, "prompt": "Why?", "chosen": "Because.", "rejected": "No."}
        for user in users
    ]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = ",\n".join(map(json.dumps, rows))
        text = f"[{lines}]" if path.suffix == ".json" else lines.replace(",\n", "\n") + "\n"
        path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "users", "place", "found"),
    [
        ("p.csv", ["17", "1.29403E+18"], "p.csv:3", "1.29403E+18"),
        ("p.csv", ["ann", "1,29403E+18"], "p.csv:3", "1,29403E+18"),
        ("p.csv", ["1.2940304724278354e+18"], "p.csv:2", "1.2940304724278354e+18"),
        ("p.csv", ["1294030472427835392.0", ""], "p.csv:2", "1294030472427835392.0"),
        ("p.csv", ["ann", " 1294030472427835392.0"], "p.csv:3", " 1294030472427835392.0"),
        ("p.csv", ["17", "", "1E18"], "p.csv:4", "1E18"),
        ("p.csv", ['a "quoted" one', "129E+16"], "p.csv:3", "129E+16"),
        ("p.jsonl", [17, 1.2940304724278354e18], "p.jsonl:2", "1.2940304724278354e+18"),
        ("p.jsonl", ["ann", 2.0**53], "p.jsonl:2", "9007199254740992.0"),
        ("p.jsonl", ["ann", "7.6E+17"], "p.jsonl:2", "7.6E+17"),
        ("p.jsonl", [1.5e300], "p.jsonl:1", "1.5e+300"),
        ("p.json", [1, -1e17], "p.json: element 2", "-1e+17"),
        ("p.parquet", [1.0, None, 1.2940304724278354e18], "p.parquet: row 3", "1.29403047242783"),
        ("p.parquet", ["ann", "1.3E+18"], "p.parquet: row 2", "1.3E+18"),
    ],
)
@pytest.mark.parametrize("column", ["user_id", "unit"])
def test_an_id_that_lost_digits_is_refused_where_it_is(
    tmp_path, columns, monkeypatch, name, users, place, found, column
):
    monkeypatch.chdir(tmp_path)
    write(Path(name), users)
    mapping = columns(user_id="prompt", unit="user_id") if column == "unit" else columns()
    with pytest.raises(UserError) as caught:
        read_local(Path(name), mapping)
    (line,) = caught.value.lines()
    assert line.startswith(f'{place}: column "user_id": {found.strip()}')
    assert line.endswith(f" is an id that lost digits in a spreadsheet or as a float {FIX}")


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_small_floats_lose_digits_sooner(kind):
    exact = 2 ** (np.finfo(kind).nmant + 1)
    numbers = pa.array(np.array([1, exact - 1, -exact], kind))
    assert first_inexact(numbers) == 2
    assert first_inexact(numbers.slice(0, 2)) is None


@pytest.mark.parametrize(
    ("name", "users", "expected"),
    [
        ("p.jsonl", [2**63, 2**53 - 1.0, 3.0], [str(2**63), str(2**53 - 1), "3"]),
        ("p.parquet", [2**62, None, 3], [str(2**62), None, "3"]),
        ("p.parquet", [2.0**53 - 1, None], [str(2**53 - 1), None]),
        ("p.csv", ["1294030472427835392", "17"], ["1294030472427835392", "17"]),
        ("p.csv", ["8999999999999999.0", "17.0"], ["8999999999999999", "17"]),
        ("p.csv", ["1e5", "ann", "17"], ["1e5", "ann", "17"]),
        ("p.csv", ["e+5", "1.5", "v1.2e+3", "3e5f"], ["e+5", "1.5", "v1.2e+3", "3e5f"]),
    ],
)
def test_ids_that_are_whole_stay(tmp_path, columns, name, users, expected):
    found = read_local(write(tmp_path / name, users), columns())["user_id"]
    assert found.astype(object).where(found.notna(), None).tolist() == expected


@given(
    st.integers(2**53, 2**63),
    st.sampled_from(
        [
            lambda number: repr(float(number)) if number >= 10**16 else f"{number}.0",
            lambda number: f"{number:.5E}",
            lambda number: f"{number:.0E}",
            lambda number: f"{number:.3e}".replace(".", ","),
            lambda number: f"{float(number):.1f}",
            lambda number: f" {number:.5E}".replace("+", ""),
        ]
    ),
    st.lists(st.none() | st.text("abc123", min_size=1), max_size=4),
)
def test_whatever_wrote_the_number(number, spelling, others):
    texts = [*others, spelling(number), *others]
    assert first_rounded(pa.array(texts, pa.string())) == len(others)
    assert first_rounded(pa.array([*others, str(number)], pa.string())) is None

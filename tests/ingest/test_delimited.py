"""CSV and TSV by whole columns give what one row at a time does, or leave it to that."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prlhf.infra.errors import UserError
from prlhf.infra.io import write_parquet
from prlhf.ingest import columnar
from prlhf.ingest.columns import contract_rows
from prlhf.ingest.sources import read_local
from prlhf.ingest.tables import read_file

HEADER = ["user_id", "prompt", "chosen", "rejected", "weight", "group", "note"]
GOOD = ["ann", "Why?", "Because.", "No.", "1.5", "a", ""]
ROW = ",".join(GOOD)
WORDS = ["NA", "null", "None", "nan", "NaN", "#N/A", "true", "2020-01-01", "007", "1e5e", "0x10"]

MAPPING: dict[str, str | None] = {
    **{name: name for name in HEADER[:-1]},
    "user_text": None,
}

texts = st.sampled_from(
    [
        *["", " ", "a", "é 漢字", "🙂", "\u2028", "\x85", "\ufeff", "\x00", "\x0b", "'", *WORDS],
        *['"', '""', 'say "so"', ",", "\t", "a,b\tc", "two\nlines", "\n", "\r\n", "a\rb", '",\n"'],
    ]
)
ids = st.sampled_from(["3.0", "-12.0", "٣.0", "", "3.0", "1.0"]) | texts
weights = st.sampled_from(
    ["1", "0.1", "-0", "2.5e-3", "1e400", "1e-400", "", "123456789.123456789"]
)
odd_weights = st.sampled_from(["nan", "inf", " 1.5 ", "1_0", "٣", "+2", ".5", "5.", "1e5"])


def row_by_row(path: Path, mapping: dict[str, str | None]) -> pd.DataFrame:
    wanted = {theirs for theirs in mapping.values() if theirs is not None}
    return contract_rows(read_file(path, wanted), mapping, path.name)


def by_columns(path: Path, mapping: dict[str, str | None]) -> pd.DataFrame | None:
    records = columnar.read_columns(path, mapping)
    return None if records is None else contract_rows(records, mapping, path.name)


def outcome(read: Callable[[], pd.DataFrame]) -> list[str] | dict[str, Any]:
    """What the rows are, or what is said about the file."""
    try:
        frame = read()
    except UserError as error:
        return error.lines()
    values = frame.astype(object).where(frame.notna(), None)
    return values.to_dict("list") | {"types": frame.dtypes.astype(str).tolist()}


def write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def written(rows: list[list[str]], *, delimiter: str, quoting: int, end: str) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows(rows)
    return text.getvalue()


# ---------------------------------------------------------------- files of ordinary writers


@st.composite
def tables(draw: st.DrawFn) -> list[list[str]]:
    row = st.tuples(
        draw(st.sampled_from([ids, ids, st.sampled_from(["3.0", "-4.0", ""])])),
        *[texts] * 3,
        draw(st.sampled_from([weights, weights, weights | odd_weights])),
        *[texts] * 2,
    )
    return [HEADER, *(list(each) for each in draw(st.lists(row, min_size=1, max_size=8)))]


@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200
)
@given(
    rows=tables(),
    name=st.sampled_from(["p.csv", "p.tsv", "p.csv.gz"]),
    end=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
    last=st.booleans(),
)
def test_what_a_writer_quotes_is_read_by_columns(tmp_path, rows, name, end, mark, last):
    """Any text is, if all fields are quoted: the same rows, the same lines, the same gaps."""
    delimiter = "\t" if ".tsv" in name else ","
    text = written(rows, delimiter=delimiter, quoting=csv.QUOTE_ALL, end=end)
    text = ("\ufeff" if mark else "") + (text if last else text.removesuffix(end))
    path = write_bytes(tmp_path / name, text.encode())
    found = by_columns(path, MAPPING)
    assert found is not None
    pd.testing.assert_frame_equal(found, row_by_row(path, MAPPING))


@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200
)
@given(
    rows=tables(), end=st.sampled_from(["\n", "\r\n"]), size=st.sampled_from([512, columnar.BLOCK])
)
def test_what_a_writer_quotes_if_it_must(tmp_path, rows, end, size):
    """A field with a byte-order mark or a carriage return may be left to the other reader."""
    text = written(rows, delimiter=",", quoting=csv.QUOTE_MINIMAL, end=end)
    path = write_bytes(tmp_path / "p.csv", text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columnar, "BLOCK", size)
        found = by_columns(path, MAPPING)
    if found is None:
        assert any(
            character in "".join(field for row in rows for field in row) for character in "\ufeff\r"
        )
    else:
        pd.testing.assert_frame_equal(found, row_by_row(path, MAPPING))


@pytest.mark.parametrize("size", [200, columnar.BLOCK])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_ordinary_files_are_read_by_columns(tmp_path, monkeypatch, end, size):
    """Not row by row: the reader for that is not there. Files of both readers are equal bytes."""
    frame = pd.DataFrame([GOOD] * 40, columns=HEADER)
    frame["chosen"] = [f'Line {n}\n\n"quoted", é' for n in range(40)]
    frame["user_id"] = [f"{n}.0" if n % 5 else None for n in range(40)]
    path = tmp_path / "p.csv"
    frame.to_csv(path, index=False, lineterminator=end)
    write_parquet(tmp_path / "rows.parquet", row_by_row(path, MAPPING))

    monkeypatch.setattr(columnar, "BLOCK", size)
    monkeypatch.delattr("prlhf.ingest.sources.read_file")
    found = read_local(path, MAPPING)

    write_parquet(tmp_path / "columns.parquet", found)
    assert (tmp_path / "columns.parquet").read_bytes() == (tmp_path / "rows.parquet").read_bytes()
    assert found["row"].tolist() == list(range(2, 122, 3))
    assert found["user_id"].tolist()[1:5] == ["1", "2", "3", "4"]
    assert found["weight"].tolist() == [1.5] * 40
    assert found.loc[3, "chosen"] == 'Line 3\n\n"quoted", é'


def test_empty_lines_count_but_are_no_rows(tmp_path):
    text = f"\n\r\n{','.join(HEADER)}\n\n{ROW}\r\n\r\n\n{ROW}\n\n"
    path = write_bytes(tmp_path / "p.csv", text.encode())
    found = by_columns(path, MAPPING)
    assert found is not None
    assert found["row"].tolist() == [5, 8]


def test_a_field_as_long_as_many_parts_of_a_block(tmp_path):
    long = ROW.replace("Because.", "x" * 5_000_000)
    path = write_bytes(tmp_path / "p.csv", f"{','.join(HEADER)}\n{ROW}\n{long}\n{ROW}".encode())
    found = by_columns(path, MAPPING)
    assert found is not None
    assert found["chosen"].str.len().tolist() == [8, 5_000_000, 8]


# ---------------------------------------------------------------- what is left to the other reader


@pytest.mark.parametrize(
    "bad",
    [
        f"{ROW},x",
        ROW.removesuffix(","),
        " ",
        ROW.replace("Why", '5" Why'),
        ROW.replace("Why?", '"Why"?'),
        ROW.replace("Why?", '"Why'),
        ROW.replace("Why", "W\rhy"),
        f"{ROW}\r{ROW}",
        f"{ROW}\r\r",
    ],
)
@pytest.mark.parametrize("after", [0, 1])
def test_what_is_not_plainly_in_order_is_left_to_the_row_by_row_reader(tmp_path, bad, after):
    lines = [",".join(HEADER), ROW, bad, *[ROW] * after]
    path = write_bytes(tmp_path / "p.csv", "\n".join(lines).encode())
    assert columnar.read_columns(path, MAPPING) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xef\xbb\xbf",
        b"\n\n",
        f"{','.join(HEADER)}\n".encode(),
        f"{','.join(HEADER)},chosen\n{ROW},x\n".encode(),
        f"{','.join(HEADER[1:])}\n{ROW[4:]}\n".encode(),
        f"{','.join(HEADER)}\n{ROW}\xe9\n".encode("latin-1"),
        f"{','.join(HEADER)}\n{ROW}\n".encode("utf-16"),
    ],
    ids=["empty", "mark", "blank", "header", "twice", "lacking", "latin-1", "utf-16"],
)
def test_files_without_rows_or_columns_or_of_another_encoding_are_left(tmp_path, content):
    assert columnar.read_columns(write_bytes(tmp_path / "p.csv", content), MAPPING) is None
    assert columnar.read_columns(write_bytes(tmp_path / "p.csv.gz", content), MAPPING) is None


def test_a_cut_archive_and_other_formats_are_left(tmp_path):
    path = tmp_path / "p.csv.gz"
    content = f"{','.join(HEADER)}\n{ROW}\n".encode()
    path.write_bytes(gzip.compress(content * 1000)[:-9])
    assert columnar.read_columns(path, MAPPING) is None
    assert columnar.read_columns(write_bytes(tmp_path / "p.jsonl", content), MAPPING) is None


def test_columns_of_one_name_that_are_not_read_do_no_harm(tmp_path):
    text = f"{','.join(HEADER)},note,\n{ROW},x,y\n"
    found = by_columns(write_bytes(tmp_path / "p.csv", text.encode()), MAPPING)
    assert found is not None
    assert found["chosen"].tolist() == ["Because."]


junk = st.sampled_from(
    [
        *['"', '""', '"",', ',"', '"\n', ",", "\n", "\r", "\r\n", "\n\n", "\t", "\ufeff", "\x00"],
        *["x", " ", "\n\ufeff", f"\n{ROW}", "é", "\\", "3.0", "1e3"],
    ]
)


@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=500
)
@given(data=st.data())
def test_damage_is_understood_as_before_or_left(tmp_path, data):
    """Whatever is spoilt in a file: the rows, or the error, of the row-by-row reader."""
    quoted = ",".join(f'"{field}"' for field in GOOD)
    text = "\n".join([",".join(HEADER), ROW, quoted, ROW]) + data.draw(st.sampled_from(["", "\n"]))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(text)))
        cut = place + data.draw(st.integers(0, 2))
        text = text[:place] + data.draw(junk) + text[cut:]
    path = write_bytes(tmp_path / "p.csv", text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columnar, "BLOCK", data.draw(st.sampled_from([64, columnar.BLOCK])))
        records = columnar.read_columns(path, MAPPING)
    if records is None:
        return
    assert outcome(lambda: contract_rows(records, MAPPING, path.name)) == outcome(
        lambda: row_by_row(path, MAPPING)
    )


def test_a_word_among_the_weights_is_named_by_its_line(tmp_path):
    lines = [",".join(HEADER), ROW.replace("Why?", '"Why\n?"'), ROW.replace("1.5", "much")]
    path = write_bytes(tmp_path / "p.csv", "\n".join(lines).encode())
    assert columnar.read_columns(path, MAPPING) is not None
    with pytest.raises(UserError, match=r"p\.csv:4: column \"weight\": expected a number, found"):
        read_local(path, MAPPING)

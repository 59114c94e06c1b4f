"""Whatever lies in a named place is read, or named; what a file is, its content says."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prlhf.infra.errors import UserError
from prlhf.ingest.delimited import DELIMITERS, find_dialect
from prlhf.ingest.sources import read_local

HEADER = ["user_id", "prompt", "chosen", "rejected"]
ROW = ["ann", "Why?", "Because.", "No."]
GOOD = dict(zip(HEADER, ROW, strict=True))
LINE = json.dumps(GOOD)
LIST = json.dumps([GOOD, GOOD], indent=1)


def packed(name: str, content: bytes) -> bytes:
    if name.endswith(".zst"):
        return pa.compress(content, codec="zstd", asbytes=True)
    return gzip.compress(content) if name.endswith(".gz") else content


def table_bytes(rows: list[dict[str, Any]]) -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), content)
    return content.getvalue()


def joined(mark: str, end: str = "\n") -> str:
    return end.join([mark.join(HEADER), mark.join(ROW), ""])


def refused(path: Path, mapping: dict[str, str | None]) -> str:
    with pytest.raises(UserError) as caught:
        read_local(path, mapping)
    (line,) = caught.value.lines()
    return line.replace(f"{path.parent}/", "")


# ---------------------------------------------------------------- directories


def test_all_of_a_directory_is_read_or_named(tmp_path, columns, capsys):
    files = {
        "b.ndjson": LINE,
        "a.jsonl.zst": LINE,
        "2025/12/c.JSONL": LINE,
        "2025/part=1/d.csv.gz": joined(","),
        "e.parquet.zst": "",
        ".hidden.jsonl": LINE,
        ".git/f.jsonl": LINE,
        "notes.txt": "x",
        "2025/g.xlsx": "x",
        "h.tar.gz": "x",
    }
    for name, text in files.items():
        content = table_bytes([GOOD]) if "parquet" in name else text.encode()
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(packed(name, content))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/i.jsonl").symlink_to(tmp_path / "in/b.ndjson")
    frame = read_local(tmp_path / "in", columns())
    assert frame["source"].tolist() == [
        "2025/12/c.JSONL",
        "2025/part=1/d.csv.gz",
        "a.jsonl.zst",
        "b.ndjson",
        "e.parquet.zst",
        "i.jsonl",
    ]
    assert frame["chosen"].tolist() == ["Because."] * 6
    assert capsys.readouterr().err == (
        f"{tmp_path}/in: not read, being hidden or of another kind: "
        ".git/, .hidden.jsonl, 2025/g.xlsx, h.tar.gz, link/ and 1 more\n"
    )


def test_a_directory_without_data_names_what_it_has(tmp_path, columns):
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/deep/a\n.bin").write_bytes(b"")
    assert refused(tmp_path / "in", columns()).startswith(
        r"in: no data file in this directory, but 'deep/a\n.bin' (known: .jsonl, .ndjson, .json"
    )


def test_what_is_no_regular_file(tmp_path, columns):
    os.mkfifo(tmp_path / "p.jsonl")
    assert refused(tmp_path / "p.jsonl", columns()).startswith("p.jsonl: is no regular file")
    name = os.fsdecode(b"in/\xff.jsonl")
    (tmp_path / "in").mkdir()
    (tmp_path / name).write_text(LINE)
    assert "its name is not UTF-8 (rename it)" in refused(tmp_path / "in", columns())


# ---------------------------------------------------------------- what a file is


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("p.json", json.dumps({"version": 1, "data": [GOOD, GOOD]}, indent=1), [1, 2]),
        ("p.jsonl", json.dumps({"rows": [GOOD, GOOD]}), [1, 2]),
        ("p.jsonl", LIST, [1, 2]),
        ("p.ndjson", json.dumps([GOOD, GOOD]), [1, 2]),
        ("p.json", json.dumps(GOOD, indent=1), [1]),
        ("p.jsonl", json.dumps(GOOD | {"turns": [{"n": 1}]}), [1]),
        ("p.json", f"{LINE}\n\n{LINE}", [1, 3]),
        ("p.jsonl", "\ufeff" + LINE, [1]),
    ],
)
def test_forms_of_json(tmp_path, columns, name, text, rows):
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = read_local(tmp_path / name, columns())
    assert found["row"].tolist() == rows
    assert found["rejected"].tolist() == ["No."] * len(rows)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.json", json.dumps({"a": [GOOD], "b": [GOOD]}), "p.json: is one object, with a, b, "),
        (
            "p.json",
            json.dumps({name: {"0": value} for name, value in GOOD.items()}),
            "p.json: is one object, with user_id, prompt, chosen, rejected, instead of one",
        ),
        (
            "p.json",
            json.dumps({"columns": HEADER, "index": [0], "data": [ROW]}),
            "p.json: is one object, with columns, index, data, instead of one for each row (pandas "
            'writes rows with to_json(orient="records", lines=True)',
        ),
        (
            "p.json",
            json.dumps({"data": [GOOD, 3]}),
            'p.json: no column "user_id"; it has data',
        ),
        (
            "p.json",
            json.dumps({"data": [GOOD, GOOD | {"chosen": 3}]}),
            'p.json: element of "data" 2: column "chosen": expected text, found the number 3',
        ),
        (
            "p.json",
            LIST.replace('"No."', "NaN", 1),
            "p.json:6: malformed JSON: NaN is not JSON (column 15) (write null for a",
        ),
        ("p.json", f'[{LINE},\n{LINE[:-1]}, "w": -Infinity}}]', "p.json:2: malformed JSON: -Inf"),
        ("p.jsonl", f"{LIST}\n{LIST}", "p.jsonl:15: malformed JSON: Extra data (column 1) (each"),
        ("p.jsonl", f'{LINE}\n{LINE[:-1]}, "chosen": ""}}', 'p.jsonl:2: column "chosen": stands'),
        ("p.json", f'[{LINE[:-1]}, "prompt": ""}}]', 'p.json: element 1: column "prompt": stands'),
        ("p.jsonl", f"{LINE[:-9]}\n{LINE}", "p.jsonl:1: malformed JSON: "),
    ],
)
def test_what_is_wrong_with_json_is_named(tmp_path, columns, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert refused(tmp_path / name, columns()).startswith(message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", gzip.compress(LINE.encode()), "is packed with gzip (end its name in .gz)"),
        ("p.csv", packed(".zst", b"x"), "is packed with Zstandard (end its name in .zst)"),
        ("p.csv", table_bytes([GOOD]), "is a Parquet file (end its name in .parquet)"),
        ("p.csv", b"PK\x03\x04\x14\x00", "is a ZIP archive, or a spreadsheet (unpack it"),
        ("p.json", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        ("p.jsonl.zst", LINE.encode(), "is not a whole Zstandard file: "),
        ("p.csv.zst", packed(".zst", os.urandom(5000))[:-9], "is not a whole Zstandard file: "),
        ("p.csv.zst", packed(".zst", b""), "is empty: no rows in it"),
        ("p.jsonl", LINE.encode("utf-16"), "is UTF-16, not UTF-8 (save the file as UTF-8; `iconv"),
        (
            "p.csv",
            joined(",").encode("utf-16-le"),
            "is UTF-16LE, not UTF-8 (save the file as UTF-8",
        ),
        ("p.tsv", joined("\t").encode("utf-32"), "is UTF-32, not UTF-8 (save the file as UTF-8"),
    ],
)
def test_what_a_file_is_instead(tmp_path, columns, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert refused(tmp_path / name, columns()).startswith(f"{name}: {message}")


def test_parquet_with_a_column_twice_or_no_text(tmp_path, columns):
    arrays = [pa.array([value]) for value in [*ROW, "x"]]
    pq.write_table(pa.table(arrays, [*HEADER, "chosen"]), tmp_path / "p.parquet")
    assert refused(tmp_path / "p.parquet", columns()) == (
        'p.parquet: has 2 columns named "chosen" (rename or remove all but one)'
    )
    sizes = pa.array([0, 2], pa.int32()).buffers()[1]
    arrays[2] = pa.Array.from_buffers(pa.string(), 1, [None, sizes, pa.py_buffer(b"\xff\xfe")])
    pq.write_table(pa.table(arrays[:4], HEADER), tmp_path / "p.parquet")
    line = refused(tmp_path / "p.parquet", columns())
    assert line.startswith("p.parquet: is not a readable Parquet file: ")
    assert "UTF8" in line


# ---------------------------------------------------------------- delimiters


@pytest.mark.parametrize("name", ["p.csv", "p.tsv"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_delimiters_are_found_out_and_said(tmp_path, columns, capsys, name, mark, end):
    said = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}[mark]
    path = tmp_path / name
    path.write_text("\ufeff" + joined(mark, end), encoding="utf-8", newline="")
    (row,) = read_local(path, columns()).to_dict("records")
    assert [row["row"], row["chosen"]] == [2, "Because."]
    usual = DELIMITERS[path.suffix] == mark
    assert capsys.readouterr().err == (
        "" if usual else f"{path}: read with {said} between fields\n"
    )
    path.write_text(f"sep={mark}{end}" + joined(mark, end), encoding="utf-8", newline="")
    assert read_local(path, columns())["row"].tolist() == [3]
    assert capsys.readouterr().err == f"{path}: its first line says: {said} between fields\n"


def test_faults_are_named_by_their_line_behind_a_line_of_the_delimiter(tmp_path, columns):
    path = tmp_path / "p.csv"
    path.write_text("sep=;\n" + joined(";") + "ann;a;b\n")
    assert refused(path, columns()).startswith("p.csv:4: has 3 fields where the header has 4 (")
    path.write_text(f"sep=;\n{joined(';').replace('prompt', 'chosen')}")
    assert refused(path, columns()).startswith('p.csv:2: has 2 columns named "chosen"')


@pytest.mark.parametrize(
    ("header", "wanted", "mark"),
    [
        ("a,b;c;d;e", {"a"}, ","),
        ("a,b;c;d;e", {"c", "d"}, ";"),
        ("a,b;c;d;e", (), ","),
        ('"a,b";c', (), ";"),
        ("a|b;c", (), ";"),
        ("a", {"a"}, ","),
        ("", (), ","),
    ],
)
def test_the_header_tells_the_delimiter(tmp_path, header, wanted, mark):
    path = tmp_path / "p.csv"
    path.write_text(f"\n{header}\n")
    assert find_dialect(path, wanted).delimiter == mark


cells = st.text(st.sampled_from('ab,;|\t"\n é{['), max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(rows=st.lists(st.tuples(cells, cells, cells, cells), min_size=1, max_size=4), data=st.data())
def test_any_cells_come_through_any_delimiter(tmp_path, columns, rows, data):
    text = io.StringIO(newline="")
    mark = data.draw(st.sampled_from(",;\t|"))
    writer = csv.writer(
        text, delimiter=mark, lineterminator=data.draw(st.sampled_from(["\n", "\r\n"]))
    )
    writer.writerows([HEADER, *rows])
    path = tmp_path / data.draw(st.sampled_from(["p.csv", "p.tsv"]))
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    found = read_local(path, columns())[["chosen", "rejected"]].astype(object)
    assert found.where(found.notna(), "").values.tolist() == [list(row[2:]) for row in rows]

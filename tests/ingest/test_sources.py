"""Reading local files and hub data sets, and what is said about those that are damaged."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prlhf.data import ROW_COLUMNS
from prlhf.data.prompts import messages
from prlhf.infra.errors import UserError
from prlhf.ingest.sources import SOURCES, read_hub, read_local
from prlhf.params import DataParams

GOOD = {"user_id": "ann", "prompt": "Why?", "chosen": "Because.", "rejected": "No."}


def refused(path: Path, mapping: dict[str, str | None]) -> str:
    """The one line with which `path` is refused, its directory left aside."""
    with pytest.raises(UserError) as caught:
        read_local(path, mapping)
    (line,) = caught.value.lines()
    return line.replace(f"{path.parent}/", "")


def csv_text(rows: list[dict[str, Any]], separator: str = ",") -> str:
    frame = pd.DataFrame(rows)
    return frame.to_csv(index=False, sep=separator)


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv", "p.tsv", "p.parquet"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_every_format_gives_the_same_rows(tmp_path, columns, name, suffix):
    rows = [
        GOOD,
        GOOD | {"user_id": "bob", "prompt": 'Line\none, "quoted"?', "chosen": "é 漢字 \u2028 🙂"},
        GOOD | {"prompt": "NA", "chosen": "null", "rejected": "None"},
    ]
    if ".jsonl" in name:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    elif ".json" in name:
        content = json.dumps(rows, indent=1).encode()
    elif ".parquet" in name:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table")
        content = (tmp_path / "table").read_bytes()
    else:
        content = csv_text(rows, "," if "csv" in name else "\t").encode()
    path = tmp_path / (name + suffix)
    path.write_bytes(gzip.compress(content) if suffix else content)

    frame = read_local(path, columns())

    assert tuple(frame.columns) == ROW_COLUMNS
    assert frame[["user_id", "chosen", "rejected"]].to_dict("records") == [
        {key: row[key] for key in ("user_id", "chosen", "rejected")} for row in rows
    ]
    assert [messages(prompt)[0]["content"] for prompt in frame["prompt"]] == [
        row["prompt"] for row in rows
    ]
    assert frame["source"].unique().tolist() == [path.name]
    assert frame["weight"].tolist() == [1.0, 1.0, 1.0]
    assert frame[["user_text", "group", "unseen"]].isna().all(axis=None)
    assert [str(kind) for kind in frame.dtypes] == (
        ["int64"] + ["str"] * 6 + ["float64", "str", "boolean"]
    )


def test_rows_are_numbered_as_an_editor_shows_them(tmp_path, columns):
    line = json.dumps(GOOD)
    (tmp_path / "a.jsonl").write_text(f"\ufeff{line}\n\n{line}\r\n   \n{line}", encoding="utf-8")
    text = 'user_id,prompt,chosen,rejected\r\nann,"Why\r\nso?",a,b\r\n\r\nann,p,c,d\r\n'
    (tmp_path / "b.csv").write_bytes(text.encode())
    assert read_local(tmp_path / "a.jsonl", columns())["row"].tolist() == [1, 3, 5]
    assert read_local(tmp_path / "b.csv", columns())["row"].tolist() == [2, 5]


def test_a_directory_is_read_in_the_order_of_its_names(tmp_path, columns, write_lines):
    write_lines(tmp_path / "2.jsonl.gz", [GOOD | {"user_id": "late"}])
    write_lines(tmp_path / "1.jsonl", [GOOD, GOOD])
    (tmp_path / "0.csv").write_text(csv_text([GOOD | {"user_id": "first"}]))
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / ".hidden.jsonl").write_text("not data")
    frame = read_local(tmp_path, columns())
    assert frame["user_id"].tolist() == ["first", "ann", "ann", "late"]
    assert frame["source"].tolist() == ["0.csv", "1.jsonl", "1.jsonl", "2.jsonl.gz"]
    assert frame["row"].tolist() == [2, 1, 2, 1]


def test_json_lines_under_the_name_of_json(tmp_path, columns, write_lines):
    path = write_lines(tmp_path / "p.json", [GOOD, GOOD])
    assert len(read_local(path, columns())) == 2


def test_columns_are_mapped(tmp_path, columns, write_lines):
    theirs = {"who": 7, "q": "Why?", "yes": "a", "no": "b", "bio": "Old.", "w": 2, "g": "x"}
    path = write_lines(tmp_path / "p.jsonl", [theirs])
    mapping = {
        "user_id": "who",
        "prompt": "q",
        "chosen": "yes",
        "rejected": "no",
        "user_text": "bio",
        "weight": "w",
        "group": "g",
    }
    (row,) = read_local(path, mapping).to_dict("records")
    assert (row["user_id"], row["user_text"], row["weight"], row["group"]) == (
        "7",
        "Old.",
        2.0,
        "x",
    )


def test_missing_values_stay_missing(tmp_path, columns, write_lines):
    """Which rows are usable is not for the reader to say."""
    rows = [GOOD | {"user_id": None}, GOOD | {"prompt": "  "}, {"user_id": "ann", "prompt": "p"}]
    frame = read_local(write_lines(tmp_path / "p.jsonl", [GOOD, *rows]), columns())
    assert frame["user_id"].isna().tolist() == [False, True, False, False]
    assert frame["prompt"].isna().tolist() == [False, False, True, False]
    assert frame["chosen"].isna().tolist() == [False, False, False, True]
    (tmp_path / "p.csv").write_text("user_id,prompt,chosen,rejected\n,p,a,b\nann,p,,b\n,,,\n")
    frame = read_local(tmp_path / "p.csv", columns())
    assert frame["user_id"].isna().tolist() == [True, False, True]
    assert frame["chosen"].isna().tolist() == [False, True, True]


# ---------------------------------------------------------------- user ids


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, 2, None], ["1", "2", None]),
        ([1.0, 2.0, None], ["1", "2", None]),
        (["1", "02", None], ["1", "02", None]),
        (["1.0", "x", None], ["1.0", "x", None]),
        ([7, "ann", None], ["7", "ann", None]),
        ([10**20, -3, None], [str(10**20), "-3", None]),
    ],
)
def test_ids_are_text_and_whole_numbers_stay_whole(tmp_path, columns, write_lines, ids, expected):
    path = write_lines(tmp_path / "p.jsonl", [GOOD | {"user_id": each} for each in ids])
    assert (
        read_local(path, columns())["user_id"].astype(object).replace(float("nan"), None).tolist()
        == expected
    )


def test_ids_that_pandas_turned_into_floats(tmp_path, columns):
    frame = pd.DataFrame([GOOD | {"user_id": 1}, GOOD | {"user_id": 2}, GOOD | {"user_id": None}])
    frame.to_csv(tmp_path / "p.csv", index=False)
    frame.to_parquet(tmp_path / "p.parquet", index=False)
    assert "1.0" in (tmp_path / "p.csv").read_text()
    for name in ("p.csv", "p.parquet"):
        assert read_local(tmp_path / name, columns())["user_id"].dropna().tolist() == ["1", "2"]


def test_ids_in_typed_columns(tmp_path, columns):
    for kind, values in {
        "dictionary": pa.array(["ann", "bob"]).dictionary_encode(),
        "int16": pa.array([1, 2], pa.int16()),
        "large": pa.array(["ann", "bob"], pa.large_string()),
    }.items():
        table = pa.Table.from_pylist([GOOD, GOOD]).set_column(0, "user_id", values)
        pq.write_table(table, tmp_path / f"{kind}.parquet")
        found = read_local(tmp_path / f"{kind}.parquet", columns())["user_id"].tolist()
        assert found == [str(value) for value in values.to_pylist()]


# ---------------------------------------------------------------- prompts of messages

CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}]


def test_messages_as_prompts(tmp_path, columns, write_lines):
    rows = [GOOD | {"prompt": CHAT}, GOOD | {"prompt": CHAT[1:]}]
    write_lines(tmp_path / "p.jsonl", [*rows, GOOD])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    lines = read_local(tmp_path / "p.jsonl", columns())["prompt"]
    table = read_local(tmp_path / "p.parquet", columns())["prompt"]
    assert messages(lines[0]) == CHAT
    assert lines[1] == lines[2], "a text is the same prompt as the one user message"
    assert lines[:2].tolist() == table.tolist()


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ([{"role": "bot", "content": "x"}], "message 1 has role 'bot', expected one of"),
        ([{"role": "user", "text": "x"}], "message 1 has no content"),
        ([*CHAT, {"role": "assistant", "content": "x"}], "the last message is the assistant's"),
        ([*CHAT, "Why?"], "message 3: expected an object with role and content, found the text"),
        ({"content": "x"}, "expected text or a list of messages, found an object"),
        (12, "expected text or a list of messages, found the number 12"),
    ],
)
def test_malformed_messages_name_their_line(tmp_path, columns, write_lines, prompt, problem):
    path = write_lines(tmp_path / "p.jsonl", [GOOD, GOOD | {"prompt": prompt}])
    line = refused(path, columns())
    assert line.startswith('p.jsonl:2: column "prompt": ')
    assert problem in line


def test_malformed_messages_in_parquet_name_their_row(tmp_path, columns):
    rows = [GOOD | {"prompt": CHAT}, GOOD | {"prompt": [{"role": "user", "content": None}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    assert refused(tmp_path / "p.parquet", columns()).startswith(
        'p.parquet: row 2: column "prompt": message 1 has no content (messages are texts of'
    )


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ('{"user_id": "ann", "prompt": "Wh', "malformed JSON: Unterminated string"),
        ('{"user_id": "ann",, }', "malformed JSON: Expecting property name"),
        ('{"user_id": "ann"} {}', "malformed JSON: Extra data"),
        ('{"weight": NaN}', "malformed JSON: NaN is not JSON"),
        ("[" * 100_000, "malformed JSON"),
        ('["ann", "Why?"]', "expected a JSON object, found a list"),
        ("3", "expected a JSON object, found the number 3"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, columns, write_lines, bad, problem):
    path = write_lines(tmp_path / "p.jsonl", [GOOD, "", bad, GOOD])
    line = refused(path, columns())
    assert line.startswith(f"p.jsonl:3: {problem}")
    assert len(line) < 200


def test_a_malformed_json_file_names_line_or_element(tmp_path, columns):
    path = tmp_path / "p.json"
    path.write_text(json.dumps([GOOD, GOOD], indent=0).replace('"No."', "No.", 1))
    assert refused(path, columns()) == "p.json:6: malformed JSON: Expecting value (column 13)"
    path.write_text(json.dumps([GOOD, 5]))
    assert refused(path, columns()) == (
        "p.json: element 2: expected a JSON object, found the number 5"
    )


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("prompt", 12, "the number 12"),
        ("chosen", ["a"], "a list"),
        ("rejected", True, "true"),
        ("chosen", {"text": "a"}, "an object"),
        ("user_id", True, "true"),
        ("user_id", 2.5, "the number 2.5"),
        ("user_id", [1], "a list"),
        ("user_text", 5, "the number 5"),
        ("weight", "2", "the text '2'"),
        ("weight", False, "false"),
        ("group", 1.5, "the number 1.5"),
    ],
)
def test_a_wrong_type_names_line_and_column(tmp_path, columns, write_lines, key, value, found):
    full = GOOD | {"user_text": "x", "weight": 1, "group": "g"}
    path = write_lines(tmp_path / "p.jsonl", [full, full, full | {key: value}])
    line = refused(path, columns(user_text="user_text", weight="weight", group="group"))
    assert line.startswith(f'p.jsonl:3: column "{key}": expected ')
    assert f"found {found}" in line


def test_a_wrong_type_in_parquet_names_the_column(tmp_path, columns):
    pq.write_table(pa.Table.from_pylist([GOOD | {"chosen": 3}]), tmp_path / "p.parquet")
    assert refused(tmp_path / "p.parquet", columns()) == (
        'p.parquet: column "chosen": expected text, found int64'
    )
    pq.write_table(pa.Table.from_pylist([GOOD | {"user_id": 1.5}]), tmp_path / "p.parquet")
    assert 'column "user_id": expected text or whole numbers' in refused(
        tmp_path / "p.parquet", columns()
    )


def test_a_word_in_a_csv_column_of_weights(tmp_path, columns):
    path = tmp_path / "p.csv"
    path.write_text("user_id,prompt,chosen,rejected,w\nann,p,a,b,0.5\nann,p,a,b,much\n")
    assert refused(path, columns(weight="w")) == (
        "p.csv:3: column \"w\": expected a number, found the text 'much'"
    )


def test_a_text_that_is_no_unicode(tmp_path, columns, write_lines):
    path = write_lines(tmp_path / "p.jsonl", [GOOD, GOOD | {"chosen": "x\ud800"}])
    assert refused(path, columns()).startswith('p.jsonl:2: column "chosen": holds an unpaired')


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv", "p.json", "p.jsonl.gz"])
def test_other_encodings_name_line_and_offset(tmp_path, columns, name):
    first = b'{"user_id": "ann"}\n'
    content = first + b'{"user_id": "Ren\xe9"}\n'
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    offset = len(first) + len(b'{"user_id": "Ren')
    assert refused(path, columns()) == (
        f"{name}:2: is not UTF-8: byte 0xE9 at offset {offset} "
        "(save the file as UTF-8; `iconv -f CP1252 -t UTF-8` if it is from Windows)"
    )


def test_a_missing_column_names_the_nearest(tmp_path, columns, write_lines):
    renamed = {"User_ID": "ann", "prompt": "p", "chosen_text": "a", "rejected": "b"}
    path = write_lines(tmp_path / "p.jsonl", [renamed])
    assert refused(path, columns(user_id="User_ID")) == (
        'p.jsonl: no column "chosen"; it has User_ID, prompt, chosen_text, rejected '
        '(did you mean "chosen_text"? set data.columns.chosen)'
    )
    assert 'did you mean "User_ID"?' in refused(path, columns())
    line = refused(path, columns(user_id="User_ID", chosen="chosen_text", weight="zzz"))
    assert 'no column "zzz"' in line
    assert "did you mean" not in line
    for name, text in {"p.csv": csv_text([renamed]), "p.json": json.dumps([renamed])}.items():
        (tmp_path / name).write_text(text)
        assert 'no column "user_id"' in refused(tmp_path / name, columns())
    pq.write_table(pa.Table.from_pylist([renamed]), tmp_path / "p.parquet")
    assert 'did you mean "User_ID"?' in refused(tmp_path / "p.parquet", columns())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", b""),
        ("p.jsonl", b"\n  \n"),
        ("p.json", b"[]"),
        ("p.json", b""),
        ("p.csv", b""),
        ("p.csv", b"user_id,prompt,chosen,rejected\n"),
        ("p.tsv", b"\n\n"),
        ("p.jsonl.gz", gzip.compress(b"", mtime=0)),
    ],
)
def test_empty_files(tmp_path, columns, name, content):
    (tmp_path / name).write_bytes(content)
    assert refused(tmp_path / name, columns()) == f"{name}: is empty: no rows in it"


def test_an_empty_parquet_file(tmp_path, columns):
    pq.write_table(pa.Table.from_pylist([GOOD]).slice(0, 0), tmp_path / "p.parquet")
    assert refused(tmp_path / "p.parquet", columns()) == "p.parquet: is empty: no rows in it"


@pytest.mark.parametrize(
    ("row", "line", "problem"),
    [
        ("ann,p,a", 3, "has 3 fields where the header has 4"),
        ("ann,p,a,b,c", 3, "has 5 fields where the header has 4"),
        ('ann,p,"a"x,b', 3, "malformed row"),
        ('ann,p,"a,b', 3, "malformed row: unexpected end of data"),
    ],
)
def test_ragged_and_misquoted_rows(tmp_path, columns, row, line, problem):
    (tmp_path / "p.csv").write_text(f"user_id,prompt,chosen,rejected\nann,p,a,b\n{row}\n")
    assert refused(tmp_path / "p.csv", columns()).startswith(f"p.csv:{line}: {problem}")


def test_two_columns_of_one_name(tmp_path, columns):
    (tmp_path / "p.csv").write_text("user_id,prompt,chosen,chosen,rejected\na,b,c,d,e\n")
    assert refused(tmp_path / "p.csv", columns()) == (
        'p.csv:1: has 2 columns named "chosen" (rename or remove all but one)'
    )


def test_a_cell_larger_than_the_csv_module_allows_by_default(tmp_path, columns):
    (tmp_path / "p.csv").write_text(csv_text([GOOD | {"chosen": "x" * 300_000}]))
    assert len(read_local(tmp_path / "p.csv", columns())["chosen"][0]) == 300_000


def test_parquet_that_is_none(tmp_path, columns):
    (tmp_path / "p.parquet").write_text("user_id,prompt\n")
    assert refused(tmp_path / "p.parquet", columns()).startswith(
        "p.parquet: is not a readable Parquet file"
    )


@pytest.mark.parametrize("keep", [0.2, 0.8])
def test_damaged_parquet(tmp_path, columns, keep):
    pq.write_table(pa.Table.from_pylist([GOOD] * 50), tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    (tmp_path / "p.parquet").write_bytes(content[: int(len(content) * keep)])
    assert refused(tmp_path / "p.parquet", columns()).startswith(
        "p.parquet: is not a readable Parquet file"
    )
    # The column itself, with the footer intact.
    (tmp_path / "p.parquet").write_bytes(content[:4] + b"\xff" * 60 + content[64:])
    assert refused(tmp_path / "p.parquet", columns()).startswith(
        "p.parquet: is not a readable Parquet file"
    )


@pytest.mark.parametrize("name", ["p.jsonl.gz", "p.csv.gz", "p.json.gz", "p.parquet.gz"])
def test_gzip_that_is_cut_off_or_none(tmp_path, columns, name):
    lines = "".join(json.dumps(GOOD | {"chosen": str(n)}) + "\n" for n in range(5000))
    (tmp_path / name).write_bytes(gzip.compress(lines.encode())[:-100])
    assert refused(tmp_path / name, columns()).startswith(f"{name}: is not a whole gzip file")
    (tmp_path / name).write_bytes(lines.encode())
    assert refused(tmp_path / name, columns()).startswith(f"{name}: is not a whole gzip file")


def test_paths_that_name_no_data(tmp_path, columns):
    assert refused(tmp_path / "none.jsonl", columns()).startswith(
        "none.jsonl: no such file or directory"
    )
    (tmp_path / "p.xlsx").write_bytes(b"x")
    assert "unknown kind of file .xlsx (known: .jsonl, .ndjson, .json" in refused(
        tmp_path / "p.xlsx", columns()
    )
    (tmp_path / "empty").mkdir()
    assert "no data file in this directory" in refused(tmp_path / "empty", columns())


def test_every_source_that_params_allow_can_be_read():
    allowed = set(get_args(DataParams.model_fields["source"].annotation))
    assert set(SOURCES) == allowed, (
        "a source needs both: an entry in SOURCES and its name in params"
    )


# ---------------------------------------------------------------- the hub


def hub(name: str, **changes: Any) -> Any:
    defaults: dict[str, Any] = {"config": None, "split": "train", "revision": None}
    return SimpleNamespace(id=name, **(defaults | changes))


def test_a_hub_data_set(monkeypatch, columns):
    import datasets

    table = [
        {"who": 1, "prompt": CHAT, "chosen": "a", "rejected": "b", "extra": 1.5},
        {"who": 2, "prompt": CHAT, "chosen": "c", "rejected": "d", "extra": 2.5},
    ]
    asked: list[tuple[Any, ...]] = []

    def load(name: str, config: str | None, *, split: str, revision: str | None) -> Any:
        asked.append((name, config, split, revision))
        return datasets.Dataset.from_list(table)

    monkeypatch.setattr(datasets, "load_dataset", load)
    frame = read_hub(hub("org/name", config="c", revision="abc"), columns(user_id="who"))
    assert asked == [("org/name", "c", "train", "abc")]
    assert frame["user_id"].tolist() == ["1", "2"]
    assert frame["row"].tolist() == [1, 2]
    assert messages(frame["prompt"][1]) == CHAT
    with pytest.raises(UserError, match='no column "user_id"; it has who, prompt, chosen'):
        read_hub(hub("org/name"), columns())


def test_a_data_set_that_the_library_finds_on_disk(tmp_path, monkeypatch, columns, write_lines):
    """The library's real code, from files to columns."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_lines(tmp_path / "set/train.jsonl", [GOOD, GOOD | {"user_id": "bob"}])
    write_lines(tmp_path / "set/test.jsonl", [GOOD])
    found = read_hub(hub(str(tmp_path / "set")), columns())
    assert found["user_id"].tolist() == ["ann", "bob"]
    with pytest.raises(UserError, match="cannot load this data set: .*dev"):
        read_hub(hub(str(tmp_path / "set"), split="dev"), columns())


def test_a_hub_out_of_reach_is_one_line(monkeypatch, columns):
    import datasets

    def load(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub\nHTTPSConnectionPool(host=...)")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError) as caught:
        read_hub(hub("org/name"), columns())
    (line,) = caught.value.lines()
    assert re.match("org/name: cannot load this data set: Couldn't reach the Hub .check", line)

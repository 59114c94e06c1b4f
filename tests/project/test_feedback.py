"""The store of feedback: what is new in an inbox goes into a batch, whole or not at all."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from prlhf import cli
from prlhf.infra.errors import UserError
from prlhf.project.feedback import Appended, append, track

DAY = datetime.date(2026, 11, 24)
STORE = Path("data/feedback")
FIRST = STORE / "2026-11-24.jsonl"
SECOND = STORE / "2026-11-24_002.jsonl"
COLUMNS = {"user_id": "who", "prompt": "q", "chosen": "a", "rejected": "b", "weight": "w"}


def stored(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_new_rows_become_a_batch_and_known_ones_do_not(work, write_lines):
    inbox = work / "inbox"
    rows = [{"who": 1, "note": "ü"}, {"who": 2}, {"who": 1, "note": "ü"}]
    write_lines(inbox / "a.jsonl", rows)
    assert append(inbox, STORE, today=DAY) == Appended(FIRST, 2, 1)
    assert stored(FIRST) == [{"who": 1, "note": "ü"}, {"who": 2, "note": None}]
    assert append(inbox, STORE, today=DAY) == Appended(None, 0, 3)
    # Another order of fields is the same content; a day's second batch sorts behind its first.
    write_lines(inbox / "b.jsonl.gz", [{"note": "ü", "who": 1}, {"who": 3}])
    assert append(inbox, STORE, today=DAY) == Appended(SECOND, 1, 4)
    assert stored(SECOND) == [{"note": None, "who": 3}]
    assert sorted(STORE.iterdir()) == [FIRST, SECOND]


def test_an_empty_inbox_has_nothing_new(work, capsys):
    (work / "inbox").mkdir()
    assert append(work / "inbox", STORE, today=DAY) == Appended(None, 0, 0)
    assert capsys.readouterr().err == ""
    (work / "inbox/.a.jsonl").write_text('{"who": 1}')
    assert append(work / "inbox", STORE, today=DAY) == Appended(None, 0, 0)
    assert "inbox: not read, being hidden or of another kind: .a.jsonl" in capsys.readouterr().err
    assert not STORE.exists()


def test_all_of_an_inbox_is_added_or_named(work, write_lines, capsys):
    """Files at any depth and in any form that the ingestion reads, each row once."""
    inbox = work / "inbox"
    rows = [{"who": str(n), "q": "Why?", "a": "x", "b": "y", "w": 1} for n in range(6)]
    write_lines(inbox / "a.ndjson", rows[:1])
    write_lines(inbox / "2026/11/b.jsonl", rows[1:2])
    packed = pa.compress(json.dumps(rows[2]).encode(), codec="zstd", asbytes=True)
    (inbox / "c.jsonl.zst").write_bytes(packed)
    (inbox / "d.csv").write_text("who;q;a;b;w\n3;Why?;x;y;1\n")
    (inbox / "e.json").write_text(json.dumps({"data": rows[4:5]}))
    (inbox / "f.jsonl").write_text(json.dumps(rows[5:], indent=1))
    (inbox / "notes.txt").write_text("x")
    (inbox / ".f.jsonl").write_text("x")
    assert append(inbox, STORE, today=DAY, columns=COLUMNS) == Appended(FIRST, 6, 0)
    assert sorted(stored(FIRST), key=lambda row: row["who"]) == rows
    assert capsys.readouterr().err.splitlines() == [
        f"{inbox}: not read, being hidden or of another kind: .f.jsonl, notes.txt",
        f"{inbox}/d.csv: read with semicolons between fields",
    ]


def test_messages_are_kept_as_they_came(work, write_lines):
    asked = [{"role": "user", "content": "Why?"}]
    row = {"who": "1", "a": [*asked, {"role": "assistant", "content": "x"}], "w": 1.0}
    row["b"] = json.dumps([*asked, {"role": "assistant", "content": "y"}])
    write_lines(work / "a.jsonl", [row])
    assert append(work / "a.jsonl", STORE, today=DAY, columns=COLUMNS).rows == 1
    assert stored(FIRST) == [row]


def test_cells_of_a_csv_file_are_understood_as_by_the_ingestion(work):
    (work / "log.csv").write_text("who,q,a,b,w\n17.0,Why?,42,no,1.5\n18.0,How?,yes,no,2\n")
    append(work / "log.csv", STORE, today=DAY, columns=COLUMNS)
    assert stored(FIRST) == [
        {"who": "17", "q": "Why?", "a": "42", "b": "no", "w": 1.5},
        {"who": "18", "q": "How?", "a": "yes", "b": "no", "w": 2.0},
    ]


def test_whole_numbers_of_a_column_with_gaps_are_known(work):
    pd.DataFrame({"who": [1, 2]}).to_parquet(work / "whole.parquet")
    pd.DataFrame({"who": [1, None, 2]}).to_parquet(work / "gaps.parquet")
    append(work / "whole.parquet", STORE, today=DAY)
    assert append(work / "gaps.parquet", STORE, today=DAY) == Appended(SECOND, 1, 2)
    assert stored(SECOND) == [{"who": None}]


@pytest.mark.parametrize(
    ("line", "columns", "message"),
    [
        ('{"who": "x', None, "inbox/b.jsonl:2: malformed JSON"),
        ('{"who": "\\ud800"}', None, "inbox/b.jsonl:2: cannot be kept as JSON: it holds an"),
        (
            '{"who": 2, "\\udc00": null}',
            None,
            "inbox/b.jsonl:1: cannot be kept as JSON: it holds an",
        ),
        ('{"who": 1e999}', None, "inbox/b.jsonl:2: cannot be kept as JSON: Out of range"),
        (
            '{"who": 1, "q": "?", "a": 5, "b": "", "w": 1}',
            COLUMNS,
            'inbox/b.jsonl:2: column "a": expected text, found the number 5',
        ),
    ],
    ids=["malformed", "surrogate", "name", "infinite", "type"],
)
def test_a_faulty_row_adds_nothing(work, write_lines, line, columns, message):
    good = '{"who": 1, "q": "?", "a": "x", "b": "y", "w": 1}'
    write_lines(work / "inbox/a.jsonl", [good])
    write_lines(work / "inbox/b.jsonl", [good, line])
    with pytest.raises(UserError) as caught:
        append(Path("inbox"), STORE, today=DAY, columns=columns)
    assert str(caught.value).startswith(message)
    assert not STORE.exists()


def test_what_has_no_place_in_json_is_named_by_its_row(work):
    pd.DataFrame({"who": [1, 2], "blob": [None, b"x"]}).to_parquet(work / "a.parquet")
    with pytest.raises(UserError, match=r"^a\.parquet: row 2: .* value of type bytes$") as caught:
        append(Path("a.parquet"), STORE, today=DAY)
    assert not isinstance(caught.value.__cause__, UserError)
    assert not STORE.exists()


def test_an_unfinished_write_leaves_no_batch(work, write_lines, monkeypatch):
    write_lines(work / "a.jsonl", [{"who": 1}])

    def fail(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(KeyboardInterrupt):
        append(work / "a.jsonl", STORE, today=DAY)
    assert not STORE.exists()


def test_without_dvc_the_command_says_so(work, write_lines, capsys):
    write_lines(work / "a.jsonl", [{"who": 1}])
    with pytest.raises(UserError, match=r"not in a DVC project .*dvc init"):
        track(work)
    assert cli.execute(["data", "add", "a.jsonl"]) == 2
    assert "error: " in capsys.readouterr().err
    assert cli.execute(["data", "add", "nothing.jsonl"]) == 2
    assert capsys.readouterr().err == "error: nothing.jsonl: no such file or directory\n"

"""Columns that say how to divide the data: side, unit, time."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pandas as pd
import pytest

from prlhf.data import ROW_COLUMNS
from prlhf.infra.errors import UserError
from prlhf.ingest.columnar import read_columns
from prlhf.ingest.columns import contract_rows
from prlhf.ingest.sources import read_local
from prlhf.ingest.tables import read_file
from prlhf.project.feedback import append
from prlhf.stages import ingest, validate

GOOD: dict[str, Any] = {"user_id": "ann", "prompt": "Why?", "chosen": "Because.", "rejected": "No."}
NOON = datetime.datetime(2026, 11, 24, 12, tzinfo=datetime.UTC).timestamp()


def test_they_are_there_only_if_they_are_mapped(work, columns, write_lines):
    path = write_lines(work / "p.jsonl", [GOOD | {"part": "test", "talk": 7, "at": "2026-11-24"}])
    assert tuple(read_local(path, columns()).columns) == ROW_COLUMNS
    rows = read_local(path, columns(side="part", unit="talk", time="at"))
    assert tuple(rows.columns) == (*ROW_COLUMNS, "side", "unit", "time")
    assert rows.loc[0, ["side", "unit", "time"]].tolist() == ["test", "7", NOON - 43_200]
    assert rows["time"].dtype == "float64"


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("2026-11-24T12:00:00Z", NOON),
        ("2026-11-24 12:00", NOON),
        (" 2026-11-24T13:00:00+01:00 ", NOON),
        ("2026-11-24", NOON - 43_200),
        (int(NOON), NOON),
        (NOON + 0.5, NOON + 0.5),
        (int(NOON * 1000), NOON),
        (str(int(NOON)), NOON),
        (-5, -5.0),
        (None, None),
    ],
)
def test_times(work, columns, write_lines, given, seconds):
    mapping = columns(time="at")
    path = write_lines(work / "p.jsonl", [GOOD | {"at": given}, GOOD | {"at": given}])
    rows = read_local(path, mapping)
    expected = pd.Series([seconds] * 2, dtype="float64", name="time")
    pd.testing.assert_series_equal(rows["time"], expected)
    (work / "p.csv").write_text(
        "user_id,prompt,chosen,rejected,at\n"
        f"ann,Why?,Because.,No.,{'' if given is None else given}\n"
    )
    read = read_local(work / "p.csv", mapping)
    pd.testing.assert_series_equal(read["time"], expected[:1])


def test_a_tables_own_times(work, columns):
    moments = pd.to_datetime(["2026-11-24 12:00", None], utc=True)
    frame = pd.DataFrame([GOOD, GOOD]).assign(at=moments, day=[datetime.date(2026, 11, 24), None])
    frame.to_parquet(work / "p.parquet")
    assert read_local(work / "p.parquet", columns(time="at"))["time"].tolist()[0] == NOON
    days = read_local(work / "p.parquet", columns(time="day"))["time"]
    assert days[0] == NOON - 43_200
    assert days.isna().tolist() == [False, True]
    frame.assign(at=[[1], [2]]).to_parquet(work / "p.parquet")
    with pytest.raises(UserError, match=r'p.parquet: column "at": expected times, found list'):
        read_local(work / "p.parquet", columns(time="at"))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"part": "Train"},
            "column \"part\": expected train, validation or test, found the text 'Train'",
        ),
        (
            {"part": "valid"},
            "column \"part\": expected train, validation or test, found the text 'valid'",
        ),
        ({"part": None}, 'column "part": expected train, validation or test, found nothing'),
        ({"part": 1}, 'column "part": expected text, found the number 1'),
        (
            {"at": "yesterday"},
            'column "at": expected a time (ISO 8601, or a number since 1970), found the text '
            "'yesterday'",
        ),
        (
            {"at": True},
            'column "at": expected a time (ISO 8601, or a number since 1970), found true',
        ),
        ({"talk": 1.5}, 'column "talk": expected text or a whole number, found the number 1.5'),
    ],
)
def test_what_they_cannot_be_names_the_row(work, columns, write_lines, changes, problem):
    good = GOOD | {"part": "train", "talk": "t", "at": "2026-11-24"}
    path = write_lines(work / "p.jsonl", [good, good | changes])
    with pytest.raises(UserError) as caught:
        read_local(path, columns(side="part", unit="talk", time="at"))
    assert str(caught.value) == f"{path}:2: {problem}"


@pytest.mark.parametrize("unit", ["talk 1", 4, None])
@pytest.mark.parametrize("at", ["2026-11-24", 1.5, 7, None])
def test_columns_are_those_read_line_by_line(work, columns, write_lines, unit, at):
    mapping = columns(side="part", unit="talk", time="at")
    lines = [GOOD | {"part": "test", "talk": unit, "at": at}] * 2
    path = write_lines(work / "p.jsonl", [*lines, lines[0] | {"talk": None, "at": None}])
    records = read_columns(path, mapping)
    assert records is not None
    slow = read_file(path, [name for name in mapping.values() if name])
    pd.testing.assert_frame_equal(
        contract_rows(records, mapping, path.name), contract_rows(slow, mapping, path.name)
    )


def test_the_inbox_passes_them_on_and_refuses_what_ingest_would(work, columns):
    mapping = columns(side="part", unit="talk", time="at")
    (work / "log.csv").write_text(
        "user_id,prompt,chosen,rejected,part,talk,at\nann,Why?,a,b,test,17.0,2026-11-24T12:00\n"
    )
    day = datetime.date(2026, 11, 24)
    done = append(work / "log.csv", work / "store", today=day, columns=mapping)
    assert done.path is not None
    (line,) = done.path.read_text().splitlines()
    assert json.loads(line) == {
        "user_id": "ann",
        "prompt": "Why?",
        "chosen": "a",
        "rejected": "b",
        "part": "test",
        "talk": "17",
        "at": "2026-11-24T12:00",
    }
    stored, direct = read_local(work / "store", mapping), read_local(work / "log.csv", mapping)
    names = ["side", "unit", "time"]
    pd.testing.assert_frame_equal(stored[names], direct[names])
    (work / "log.csv").write_text(
        "user_id,prompt,chosen,rejected,part,talk,at\nann,Why?,a,b,dev,t,2026-11-24\n"
    )
    with pytest.raises(UserError, match=r"log.csv:2: column \"part\": expected train, validation"):
        append(work / "log.csv", work / "store", today=day, columns=mapping)


def test_through_both_stages(work, data_params, rules, shares, pairs, write_lines):
    records = [
        record | {"part": "test" if number % 10 < 3 else "train", "talk": number % 10}
        for number, record in enumerate(pairs())
    ]
    write_lines(work / "pairs.jsonl", records)
    ingest.run(seed=7, data=data_params(columns={"side": "part", "unit": "talk"}))
    validate.run(seed=7, label_noise=0.0, rules=rules(), split=shares(unseen_users=0.0))
    test = pd.read_parquet("data/prepared/test.parquet")
    assert set(test["prompt"].str.extract(r"Question (\d)\?")[0]) == {"0", "1", "2"}
    assert test["unit"].nunique() == 3

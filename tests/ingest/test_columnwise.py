"""Whole columns at once give what one value at a time does, or leave it to that."""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import great_expectations.expectations as gxe
import pandas as pd
import pyarrow as pa
import pytest
from great_expectations.execution_engine import pandas_execution_engine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prlhf.data import prompts
from prlhf.data.ids import content_hash, content_hashes
from prlhf.ingest import columnar, sources
from prlhf.ingest.columns import contract_rows
from prlhf.ingest.sources import read_local
from prlhf.ingest.tables import read_file
from prlhf.validation import prepare
from prlhf.validation.suite import Check, NarrowPandasExecutionEngine, Validator

PACKAGE = str(Path(prompts.__file__).resolve().parents[1])
GOOD: dict[str, Any] = {"user_id": "ann", "prompt": "Why?", "chosen": "Because.", "rejected": "No."}
CHAT = [
    {"role": "system", "content": 'Be "kind".', "name": "x"},
    {"role": "user", "content": "Why?\n\t\\ \x01"},
]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["", " \n", "\u2003", '"', "\\", "\\u0041", "\x00\x1f\x7f", '"}]', "},{"]
)
chats = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(prompts.ROLES), "content": texts}), max_size=3
).map(lambda turns: [*turns, {"role": "user", "content": "a"}] if turns else turns)


def canonical(prompt: Any) -> str | None:
    try:
        return None if prompt is None else prompts.canonical_prompt(prompt)
    except prompts.EmptyPromptError:
        return None


def line_by_line(path: Path, mapping: dict[str, str | None]) -> pd.DataFrame:
    wanted = {theirs for theirs in mapping.values() if theirs is not None}
    return contract_rows(read_file(path, wanted), mapping, path.name)


# ---------------------------------------------------------------- JSON Lines

LINE = json.dumps(GOOD | {"weight": 1.5})


@pytest.mark.parametrize(
    "lines",
    [
        [GOOD | {"weight": 1}, GOOD | {"weight": 0.1, "user_id": None}, GOOD | {"weight": None}],
        [GOOD | {"weight": 2**70}, GOOD | {"weight": 1e-400}, GOOD | {"weight": -0.5}],
        [GOOD | {"user_id": -3, "weight": 1, "group": 0}, GOOD | {"user_id": 2**62, "group": 4}],
        [GOOD | {"prompt": CHAT, "weight": 2}, GOOD | {"prompt": []}, GOOD | {"prompt": None}],
        [GOOD | {"weight": 1, "chosen": 'é 漢字 \u2028 🙂 "\\\x00', "prompt": "2020-01-01"}],
        [
            GOOD
            | {"weight": 1, "chosen": "NaN, or Infinity]", "group": "a", "extra": {"NaN": [[1]]}}
        ],
        [GOOD | {"weight": 1}, {}, GOOD | {"rejected": "x" * 3_000_000}],
        [f"\ufeff{LINE}", "", f"{LINE}\r", " \t", f"  {LINE}  "],
        [LINE.replace("Why?", r"\u0041\ud83d\ude42\/"), LINE.replace("user_id", r"user\u005fid")],
    ],
    ids=["weights", "sizes", "numbers", "chat", "text", "words", "wide", "spaces", "escapes"],
)
@pytest.mark.parametrize("block", [64, columnar.BLOCK])
@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz"])
def test_columns_are_those_read_line_by_line(
    tmp_path, columns, write_lines, monkeypatch, lines, block, name
):
    monkeypatch.setattr(columnar, "BLOCK", block)
    group = "group" if any("group" in line for line in lines) else None
    mapping = columns(weight="weight", group=group)
    path = write_lines(tmp_path / name, lines)
    records = columnar.read_columns(path, mapping)
    assert records is not None
    pd.testing.assert_frame_equal(
        contract_rows(records, mapping, path.name), line_by_line(path, mapping)
    )


@pytest.mark.parametrize(
    "bad",
    [
        f"{LINE}{LINE}",
        f"{LINE}\r{LINE}",
        LINE.replace(", ", ",\n", 1),
        f'{{"x": [{{}}\n,{{}}], {LINE[1:]}',
        LINE.replace("1.5", "NaN"),
        LINE.replace("1.5", "-Infinity"),
        LINE.replace("}", ', "extra": [NaN ]}'),
        LINE.replace("1.5", "-0"),
        LINE.replace("1.5", "1" + "0" * 400),
        LINE.replace("1.5", "1e999"),
        LINE.replace("1.5", '"1.5"'),
        LINE.replace("}", ', "user_id": "bob"}'),
        LINE.replace('"ann"', "7"),
        LINE.replace('"Why?"', "[]"),
        LINE.replace("Because", r"\ud800"),
        LINE.replace("Because", "\x01"),
        LINE[:-1],
        "[]",
        "\u00a0",
    ],
)
def test_what_is_not_plainly_in_order_is_left_to_the_line_by_line_reader(
    tmp_path, columns, write_lines, bad
):
    path = write_lines(tmp_path / "p.jsonl", [LINE, bad, LINE])
    assert columnar.read_columns(path, columns(weight="weight")) is None


def test_bytes_that_are_no_text_are_left_even_where_no_column_is_read(tmp_path, columns):
    line = json.dumps(GOOD | {"extra": "?"}).encode()
    (tmp_path / "p.jsonl").write_bytes(line.replace(b'"?"', b'"\xe9"'))
    assert columnar.read_columns(tmp_path / "p.jsonl", columns()) is None
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(line * 1000)[:-9])
    assert columnar.read_columns(tmp_path / "p.jsonl.gz", columns()) is None


def test_a_column_without_a_value_is_told_from_one_that_is_not_there(
    tmp_path, columns, write_lines
):
    mapping = columns(weight="weight")
    path = write_lines(tmp_path / "p.jsonl", [GOOD | {"weight": None}, GOOD])
    records = columnar.read_columns(path, mapping)
    assert records is not None
    assert "weight" in records.names
    write_lines(path, [GOOD] * 2)
    assert columnar.read_columns(path, mapping) is None


junk = st.sampled_from(
    ["{", "}", '"', ",", ":", "[", "NaN", "-", "\r", "\\", "0", " ", "null", "é"]
)


@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150
)
@given(data=st.data())
def test_damage_never_passes_for_data(tmp_path, columns, data):
    """Whatever is spoilt in a file: its columns are those of the careful reader, or declined."""
    mapping = columns(weight="weight")
    text = "\n".join([LINE] * 3)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text)))
        cut = place + data.draw(st.integers(0, 2))
        text = text[:place] + data.draw(junk) + text[cut:]
    path = tmp_path / "p.jsonl"
    path.write_text(text, encoding="utf-8", newline="")
    records = columnar.read_columns(path, mapping)
    if records is not None:
        pd.testing.assert_frame_equal(
            contract_rows(records, mapping, path.name), line_by_line(path, mapping)
        )


# ---------------------------------------------------------------- prompts


@given(st.lists(st.none() | texts))
def test_prompts_of_text_columns(found):
    column = pa.chunked_array([pa.array(found[:2], pa.string()), pa.array(found[2:], pa.string())])
    assert prompts.text_prompts(column).to_pylist() == [canonical(text) for text in found]


@given(st.lists(st.none() | chats))
def test_prompts_of_columns_of_messages(found):
    kind = pa.list_(pa.struct([("content", pa.string()), ("x", pa.int8()), ("role", pa.string())]))
    whole = pa.array(found, kind)
    column = pa.chunked_array([whole.slice(0, 2), whole.slice(2)])
    result = prompts.message_prompts(column)
    assert result is not None
    assert result.to_pylist() == [canonical(chat) for chat in found]


@pytest.mark.parametrize(
    "chat",
    [
        [None],
        [{"role": None, "content": "x"}],
        [{"role": "user", "content": None}],
        [{"role": "bot", "content": "x"}],
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": 3}],
        [3],
    ],
)
def test_malformed_messages_are_left_to_be_named(chat):
    assert prompts.message_prompts(pa.chunked_array([pa.array([chat])])) is None


@given(st.lists((texts | chats).filter(lambda prompt: canonical(prompt) is not None)))
def test_lengths_of_canonical_prompts(found):
    column = [prompts.canonical_prompt(prompt) for prompt in found]
    lengths = prompts.prompt_lengths(pa.chunked_array([pa.array(column, pa.large_string())]))
    assert lengths.to_pylist() == [prompts.prompt_chars(prompt) for prompt in column]


# ---------------------------------------------------------------- hashes


@given(st.lists(st.tuples(texts, texts, texts)))
def test_hashes_of_columns(rows):
    columns = [pa.array([row[place] for row in rows], pa.string()) for place in range(3)]
    assert content_hashes(columns) == [content_hash(*row) for row in rows]


def test_hashes_of_rows_do_not_depend_on_how_many_are_hashed_at_a_time(monkeypatch):
    frame = pd.DataFrame(
        {
            "text": pd.Series(["a", None, "b", "a", "é"], dtype="str"),
            "weight": [0.0, 1.5, None, -0.0, 2.0],
            "mark": pd.array([True, None, False, True, None], dtype="boolean"),
        }
    )
    whole = sources.row_hashes(frame)
    monkeypatch.setattr(sources, "PIECE", 2)
    assert sources.row_hashes(frame).tolist() == whole.tolist()
    assert whole.tolist() == pd.util.hash_pandas_object(frame, index=False).tolist()


# ---------------------------------------------------------------- what checks look at


def test_an_expectation_gets_the_columns_that_it_names():
    frame = pd.DataFrame({"a": [1, None], "b": [None, "x"], "c": ["x", "y"]})
    engine = NarrowPandasExecutionEngine(batch_data_dict={"t": frame})

    def records(**domain: Any) -> pd.DataFrame:
        return engine.get_domain_records({"batch_id": "t", **domain})

    assert records(column="c").to_dict("list") == {"c": ["x", "y"]}
    pair = records(column_A="c", column_B="b", ignore_row_if="either_value_is_missing")
    assert pair.to_dict("index") == {1: {"c": "y", "b": "x"}}
    several = records(column_list=["a", "c"], ignore_row_if="any_value_is_missing")
    assert several.to_dict("index") == {0: {"a": 1, "c": "x"}}
    assert list(records().columns) == ["a", "b", "c"]
    assert list(records(column="d").columns) == ["a", "b", "c"]


def test_no_value_is_hashed_for_a_fingerprint(monkeypatch):
    def crash(_: pd.DataFrame) -> str:
        raise AssertionError("the table was hashed")

    monkeypatch.setattr(pandas_execution_engine, "hash_pandas_dataframe", crash)
    unique = Check("unique", gxe.ExpectColumnValuesToBeUnique(column="a"), "quarantine")
    (finding,) = Validator().run("t", pd.DataFrame({"a": ["x", "y", "x"]}), [unique])
    assert finding.rows == [0, 2]


# ---------------------------------------------------------------- no loop per row


@pytest.mark.parametrize("chat", [False, True])
def test_more_rows_call_no_function_more_often(tmp_path, columns, write_lines, rules, shares, chat):
    """The same users and prompts, more judgements: prlhf's own functions run as often."""

    def rows(each: int) -> list[dict[str, Any]]:
        return [
            GOOD
            | {"user_id": f"user{n % 5}", "chosen": f"{n} yes", "rejected": f"{n} no"}
            | {
                "prompt": [*CHAT, {"role": "user", "content": f"{n % 10}?"}]
                if chat
                else f"{n % 10}?"
            }
            for n in range(50 * each)
        ]

    def calls(each: int) -> Counter[str]:
        path = write_lines(tmp_path / f"{each}.jsonl", rows(each))
        counted: Counter[str] = Counter()

        def count(frame: Any, event: str, _: object) -> None:
            code = frame.f_code
            if event == "call" and code.co_filename.startswith(PACKAGE):
                counted[f"{Path(code.co_filename).name}:{code.co_qualname}"] += 1

        sys.setprofile(count)
        try:
            found = read_local(path, columns())
            outcome = prepare.prepare(
                found, name="p", seed=7, rules=rules(), shares=shares(), label_noise=0.0
            )
        finally:
            sys.setprofile(None)
        assert outcome.summary["rows"]["usable"] == 50 * each
        return counted

    calls(1)  # Imports run code, too.
    # Of the first hundred rows more is asked.
    few, many = calls(4), calls(8)
    assert few["columns.py:contract_rows"] == 1
    assert many == few

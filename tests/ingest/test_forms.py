"""The forms that prompts and responses come in: what is read as messages, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prlhf.data.prompts import canonical_prompt, messages
from prlhf.infra.errors import UserError
from prlhf.ingest.sources import read_local

Turns = list[dict[str, str]]

GOOD: dict[str, Any] = {"user_id": "ann", "prompt": "Why?", "chosen": "Because.", "rejected": "No."}
ASKED: Turns = [{"role": "user", "content": "Why?"}]
CHAT: Turns = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    *ASKED,
]


def says(text: str) -> Turns:
    return [{"role": "assistant", "content": text}]


def sharegpt(turns: Turns) -> Any:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]


def in_parts(turns: Turns) -> Any:
    def parts(text: str) -> Any:
        return [{"type": "text", "text": text[:2]}, {"type": "text", "text": text[2:]}]

    return [{"content": parts(turn["content"]), "role": turn["role"]} for turn in turns]


def transcript(turns: Turns) -> str:
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in turns)


FORMS: dict[str, Any] = {
    "messages": lambda turns: turns,
    "sharegpt": sharegpt,
    "parts": in_parts,
    "json": json.dumps,
    "python": repr,
    "sharegpt as text": lambda turns: json.dumps(sharegpt(turns)),
    "parts as text": lambda turns: repr(in_parts(turns)),
}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def refused(path: Path, mapping: dict[str, str | None]) -> str:
    with pytest.raises(UserError) as caught:
        read_local(path, mapping)
    (line,) = caught.value.lines()
    return line.replace(f"{path.parent}/", "")


def contents(frame: pd.DataFrame) -> list[Any]:
    names = ["prompt", "chosen", "rejected"]
    return frame[names].astype(object).where(frame[names].notna(), None).values.tolist()


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (form, name)
        for form, make in FORMS.items()
        for name in ("p.jsonl", "p.parquet", "p.csv")
        if name != "p.csv" or isinstance(make(ASKED), str)  # a cell holds text
    ],
)
@pytest.mark.parametrize("explicit", [True, False])
def test_each_form_says_the_same(tmp_path, columns, capsys, form, name, explicit):
    make = FORMS[form]
    rows = [
        {
            "user_id": "ann",
            "chosen": make([*([] if explicit else asked), *says(f"yes {number}")]),
            "rejected": make([*([] if explicit else asked), *says('it\'s "no"\n')]),
        }
        | ({"prompt": make(asked)} if explicit else {})
        for number, asked in enumerate([ASKED, CHAT])
    ]
    found = read_local(write(tmp_path / name, rows), columns())
    assert contents(found) == [
        [canonical_prompt(asked), f"yes {number}", 'it\'s "no"\n']
        for number, asked in enumerate([ASKED, CHAT])
    ]
    said = capsys.readouterr().err
    assert ('column "chosen": 2 of 2 texts are messages' in said) == (
        "text" in form or form in ("json", "python")
    )
    assert ('has no column "prompt"' in said) != explicit


@pytest.mark.parametrize("explicit", [True, False])
def test_transcripts(tmp_path, columns, explicit):
    asked = CHAT[1:]
    row = {
        "user_id": "ann",
        "prompt": transcript([*asked, *says("")]),
        "chosen": transcript([*asked, *says("yes: a\n\nb")]),
        "rejected": transcript([*asked, *says("")]),
    }
    if not explicit:
        row.pop("prompt")
    found = read_local(write(tmp_path / "p.csv", [row]), columns())
    assert contents(found) == [[canonical_prompt(asked), "yes: a\n\nb", ""]]


def test_one_message_by_itself(tmp_path, columns):
    row = GOOD | {"prompt": ASKED[0], "chosen": {"from": "gpt", "value": "a"}, "rejected": "b"}
    (found,) = contents(read_local(write(tmp_path / "p.jsonl", [row]), columns()))
    assert found == [canonical_prompt("Why?"), "a", "b"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Why?", "Why?"),
        (" Why?\n", " Why?\n"),
        (None, ASKED),
        ("", ASKED),
        ([{"role": "system", "content": "Be kind."}, *ASKED], None),
    ],
)
def test_a_prompt_that_agrees_with_the_responses(tmp_path, columns, prompt, expected):
    """White space and a system message may differ; the prompt's own words stay."""
    row = GOOD | {"prompt": prompt, "chosen": [*ASKED, *says("a")], "rejected": says("b")}
    (found,) = contents(read_local(write(tmp_path / "p.jsonl", [row]), columns()))
    assert found == [canonical_prompt(expected or prompt), "a", "b"]


def test_the_responses_may_bring_the_system_message(tmp_path, columns):
    system = {"role": "system", "content": "Be kind."}
    both = [system, *ASKED]
    row = GOOD | {"chosen": [*both, *says("a")], "rejected": [*ASKED, *says("b")]}
    (found,) = contents(read_local(write(tmp_path / "p.jsonl", [row]), columns()))
    assert messages(found[0]) == both


@pytest.mark.parametrize("name", ["p.jsonl", "p.parquet"])
def test_an_empty_system_message_is_none(tmp_path, columns, name):
    empty = {"role": "system", "content": " "}
    rows = [GOOD | {"prompt": [empty, *ASKED]}, GOOD | {"prompt": CHAT}, GOOD | {"prompt": [empty]}]
    found = read_local(write(tmp_path / name, rows), columns())["prompt"]
    assert found[:2].tolist() == [canonical_prompt(ASKED), canonical_prompt(CHAT)]
    assert found.isna().tolist() == [False, False, True]


def test_responses_without_a_message_are_missing(tmp_path, columns):
    rows = [GOOD | {"chosen": [*ASKED, *says("a")], "rejected": []}, GOOD | {"chosen": None}]
    found = contents(read_local(write(tmp_path / "p.jsonl", rows), columns()))
    assert found == [
        [canonical_prompt("Why?"), "a", None],
        [canonical_prompt("Why?"), None, "No."],
    ]


# ---------------------------------------------------------------- texts that are words


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}',
        '[{"a": 1}, {"b": 2}]',
        "[1, 2]",
        '{"role": "admin"}',
        '{"content": "x"}',
        "[{'from': 3}]",
        "Human: is that a word?",
        "What is [{'role': 'user', 'content': 'x'}]?",
        "{not json",
        "[{]",
    ],
)
def test_other_structures_are_the_users_words(tmp_path, columns, capsys, text):
    rows = [GOOD | {"prompt": text, "chosen": text}] * 2
    found = contents(read_local(write(tmp_path / "p.csv", rows), columns()))
    assert found == [[canonical_prompt(text), text, "No."]] * 2
    assert capsys.readouterr().err == ""


def test_a_whole_list_of_messages_is_read_among_words_and_a_damaged_one_is_words(
    tmp_path, columns, capsys
):
    whole = json.dumps(ASKED)
    rows = [GOOD, GOOD, GOOD, GOOD | {"prompt": whole}, GOOD | {"prompt": whole[:-3]}]
    path = write(tmp_path / "p.csv", rows)
    found = read_local(path, columns())["prompt"]
    assert found.tolist() == [canonical_prompt("Why?")] * 4 + [canonical_prompt(whole[:-3])]
    assert capsys.readouterr().err.splitlines() == [
        f'{path}: column "prompt": 1 of 5 texts are messages, and are read as such '
        f"(the first: {path}:5)",
        f'{path}: column "prompt": 1 of 5 texts seem to be messages, but are taken as they stand '
        f"(the first: {path}:6)",
    ]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "place", "problem"),
    [
        ({"prompt": "How?"}, "chosen", "its messages before the last are not those of column"),
        ({"rejected": [*CHAT, *says("b")]}, "rejected", "its messages before the last are not"),
        ({"chosen": ASKED}, "chosen", "the last message is the user's, it must be the assistant's"),
        ({"chosen": [*says("a"), *says("b")]}, "chosen", "the message before the last is the"),
        ({"chosen": ["a", "b"]}, "chosen", "expected text, found a list (a row compares two"),
        ({"chosen": [{"text": "a"}]}, "chosen", "message 1 has no role"),
        (
            {"chosen": [*ASKED, {"role": "tool", "content": "3"}, *says("a")]},
            "chosen",
            "message 2 has role 'tool', expected one of system, user, assistant (messages are",
        ),
        (
            {"chosen": [{"from": "function_call", "value": "x"}]},
            "chosen",
            "message 1 has role 'function_call'",
        ),
        (
            {"chosen": [{"role": "assistant", "content": None, "tool_calls": [{}]}]},
            "chosen",
            "message 1 has no content",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "prompt",
            "message 1 has a part that is no text: image_url",
        ),
        ({"prompt": [*ASKED, *says("x")]}, "prompt", "the last message is the assistant's"),
        ({"prompt": json.dumps(ASKED)[:-3]}, "prompt", "begins like messages, but is no whole"),
        (
            {"prompt": "[{'role': 'user', 'content': 'a'}\n {'role': 'user', 'content': 'b'}]"},
            "prompt",
            "begins like messages, but is no whole",
        ),
        ({"prompt": json.dumps([*ASKED, *says("x")])}, "prompt", "the last message is the"),
        ({"prompt": transcript([*ASKED, *ASKED])}, "prompt", "Human and Assistant do not take"),
        ({"chosen": transcript([*CHAT[1:]])}, "chosen", "the last message is the user's"),
    ],
)
def test_what_is_not_understood_names_row_and_column(tmp_path, columns, change, place, problem):
    row = GOOD | {"chosen": [*ASKED, *says("a")], "rejected": [*ASKED, *says("b")]} | change
    line = refused(write(tmp_path / "p.jsonl", [GOOD, row]), columns())
    assert line.startswith(f'p.jsonl:2: column "{place}": {problem}')
    assert line.endswith(")"), "says what to do"


def test_without_prompts_anywhere_the_column_is_missing(tmp_path, columns):
    rows = [without("prompt") | {"chosen": says("a")}]
    path = write(tmp_path / "p.jsonl", rows)
    assert refused(path, columns()).startswith('p.jsonl: no column "prompt"; it has user_id')


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).map(lambda text: f"a{text}")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    turns=st.lists(st.tuples(texts, texts), max_size=2),
    last=texts,
    chosen=texts,
    form=st.sampled_from(sorted(FORMS)),
    explicit=st.booleans(),
)
def test_any_text_comes_through_any_form(tmp_path, columns, turns, last, chosen, form, explicit):
    asked = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ] + [{"role": "user", "content": last}]
    make = FORMS[form]
    row: dict[str, Any] = {"user_id": "ann", "prompt": make(asked), "rejected": make(says("no"))}
    row["chosen"] = make([*([] if explicit else asked), *says(chosen)])
    if not explicit:
        row.pop("prompt")
    (found,) = contents(read_local(write(tmp_path / "p.jsonl", [row]), columns()))
    assert found == [canonical_prompt(asked), chosen, "no"]

"""One person, one prompt, one judgement, however they are spelt; and nothing lost in silence."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from prlhf.data import SPLITS
from prlhf.data.identity import normal_id
from prlhf.data.prompts import canonical_prompt, messages
from prlhf.infra.errors import UserError
from prlhf.infra.io import read_json
from prlhf.ingest.columns import typed_rows
from prlhf.stages import ingest, validate
from prlhf.validation.prepare import ValidationResult, prepare
from prlhf.validation.spellings import Spellings, visible
from respelt import respelt

Make = Callable[..., Any]
Record = dict[str, Any]


@pytest.fixture
def validated(rules: Make, shares: Make) -> Callable[..., ValidationResult]:
    """Validate records as they would be ingested under the test's rules, with changes."""

    def run(records: list[Record], by: str = "unit", **changes: Any) -> ValidationResult:
        frame = pd.DataFrame(records).assign(row=range(1, len(records) + 1), source="p.jsonl")
        frame["prompt"] = frame["prompt"].map(canonical_prompt)
        return prepare(
            typed_rows(frame),
            name="p.jsonl",
            seed=7,
            rules=rules(**changes),
            shares=shares(by=by),
            label_noise=0.0,
        )

    return run


def reasons(outcome: ValidationResult) -> dict[int, str]:
    return dict(zip(outcome.quarantine["row"], outcome.quarantine["reason"], strict=True))


def test_spellings_of_a_user_are_one_user_in_the_most_frequent_one(validated, pairs):
    records = pairs()
    for place, name in {0: "user0 ", 1: "user0 ", 12: "\ufeffuser1", 23: "user2\u200b\n"}.items():
        records[place]["user_id"] = name
    outcome = validated(records)
    assert outcome.quarantine.empty
    assert set(outcome.prepared.users["user_id"]) == {f"user{n}" for n in range(5)}
    assert outcome.prepared.users.filter(like="pairs_").to_numpy().sum() == 50
    assert outcome.summary["spellings"]["users"] == {
        "merged": {
            "ids": 3,
            "spellings": 6,
            "examples": [["user0", "user0 "], ["user1", "\ufeffuser1"], ["user2", "user2\u200b\n"]],
        },
        "missing": {},
        "alike": {"groups": 0, "examples": []},
        "rounded": {"ids": 0, "examples": []},
    }
    assert outcome.warnings == [
        "users in several spellings (3) count as one each; these differ in white space, invisible "
        'characters or Unicode form: "user0", "user0 "; "user1", "\\ufeffuser1"; '
        '"user2", "user2\\u200b\\n"'
    ]


def test_a_spelling_of_ones_own_is_kept(validated, pairs):
    records = pairs()
    for record in records[:10]:
        record["user_id"] = " Zoe\u0308 "
    assert " Zoe\u0308 " in set(validated(records).prepared.users["user_id"])


def test_the_same_judgement_in_another_spelling(validated, pairs):
    records = pairs()
    again = records[3] | {"prompt": "Question 3?\r\n", "chosen": records[3]["chosen"] + "\n"}
    turned = {
        "user_id": "user0\u200b",
        "prompt": " Question 4?",
        "chosen": records[4]["rejected"] + " ",
        "rejected": records[4]["chosen"],
    }
    same = records[5] | {"user_id": "user9", "chosen": "yes\u200b ", "rejected": "yes"}
    outcome = validated([*records, again, turned, same])
    assert reasons(outcome) == {
        51: "duplicate",
        5: "contradiction",
        52: "contradiction",
        53: "chosen_equals_rejected",
    }
    assert outcome.quarantine["user_id"].tolist().count("user0\u200b") == 1, "as it was ingested"


def test_what_reads_as_a_missing_id_is_nobody(validated, pairs):
    records = pairs()
    names = ["nan", "None ", "N/A", "-", "null", "nan"]
    for place, name in enumerate(names):
        records[10 * (place % 5) + place]["user_id"] = name
    outcome = validated(records)
    assert Counter(reasons(outcome).values()) == {"missing_user": 6}
    assert sorted(outcome.quarantine["user_id"]) == sorted(names)
    assert outcome.warnings == [
        'what reads as missing among the users counts as none (6 rows): "nan" (2), "-" (1), '
        '"N/A" (1) and 2 more; validate.keep_ids lists exceptions'
    ]
    kept = validated(records, keep_ids=["nan", "none", "None"], min_pairs_per_user=1)
    assert sorted(kept.quarantine["user_id"]) == ["-", "N/A", "null"]
    assert {"nan", "None "} <= set(kept.prepared.users["user_id"])


def test_data_without_a_named_user_are_refused(validated, pairs):
    outcome = validated([record | {"user_id": "{NaN}"} for record in pairs()], max_quarantined=1.0)
    assert "users with at least 2 usable pairs" in str(outcome.error)
    outcome = validated([record | {"user_id": "{NaN}"} for record in pairs()])
    assert str(outcome.error).startswith(
        "p.jsonl: 50 of 50 rows are unusable: 50 missing_user; what reads as missing among the "
        'users counts as none (50 rows): "{NaN}" (50); validate.keep_ids lists exceptions; '
    )


def test_missing_units_are_those_of_their_prompts_and_groups_may_have_any_name(validated, pairs):
    records = [
        record
        | {"unit": ["nan", "book", "book "][number % 3], "group": ["None", "None "][number % 2]}
        for number, record in enumerate(pairs())
    ]
    plain = validated([record | {"group": None} for record in pairs()]).prepared.pairs
    outcome = validated(records, by="prompt")
    assert set(outcome.prepared.pairs["group"]) == {"None"}
    assert outcome.prepared.pairs["unit"].tolist() == plain["unit"].tolist()
    table = validated([record | {"unit": "nan"} for record in records]).prepared.pairs
    assert table["unit"].tolist() == plain["unit"].tolist()
    notes = [note.split(" (")[0] for note in outcome.spellings]
    assert notes == [
        "groups in several spellings",
        "units in several spellings",
        "what reads as missing among the units counts as none",
    ]


def test_users_who_look_alike_are_told_of(validated, pairs):
    records = pairs(users=8)
    looks = ["Ada", "ada", "\uff21da", "7", "007", "7.0", "bob", "zoe"]
    for number, record in enumerate(records):
        record["user_id"] = looks[number // 10]
    outcome = validated(records)
    assert set(outcome.prepared.users["user_id"]) == set(looks)
    assert outcome.warnings == [
        'users that look alike count as different: "007", "7", "7.0"; "Ada", "ada", "\uff21da"'
    ]


def test_ids_that_a_spreadsheet_rounded_are_told_of(validated, pairs):
    looks = ["1294030472427830000", "761762000000000000", "ann", "17", "23"]
    records = pairs()
    for number, record in enumerate(records):
        record["user_id"] = looks[number // 10]
    (warning,) = validated(records).warnings
    assert warning == (
        "long numbers among the users all end in zeros, as when a spreadsheet rounded them: "
        "1294030472427830000, 761762000000000000; compare them with where they came from"
    )
    records[0]["user_id"] = "1294030472427835392"
    assert validated(records).warnings[:1] != [warning]


def test_messages_show_what_cannot_be_seen():
    assert (
        visible("Zoe\u0308\u200b\n\U0001f98a\x1b[31m")
        == '"Zoe\\u0308\\u200b\\n\U0001f98a\\x1b[31m"'
    )
    assert visible("x" * 50) == f'"{"x" * 40}\N{HORIZONTAL ELLIPSIS}"'


def test_no_ids_at_all():
    found = Spellings.of(pd.Series([None, None], dtype="str"), keep=[])
    assert found.ids.isna().all()
    assert (found.several, found.unnamed, found.alike, found.rounded) == ({}, {}, [], [])


@pytest.mark.parametrize("by", ["unit", "response"])
@pytest.mark.parametrize("seed", range(2))
def test_no_text_is_on_two_sides_and_the_books_balance(validated, seed, by):
    """Everybody's choices, each part of each in a spelling of its own."""
    draw = random.Random(seed)
    records = []
    for prompt, user in itertools.product(range(12), range(5)):
        # Who is even likes what is odd. By response, every prompt has responses of its own.
        texts = [f"yes, {prompt}:\n  so", f"no \u00e9{prompt}"]
        liked = (user + prompt) % 2
        records.append(
            {
                "user_id": respelt(f"Zo\u00eb {user}", draw, spaces=True),
                "prompt": respelt(f"Tell me \u00e9{prompt}\nat once", draw, spaces=True),
                "chosen": respelt(texts[liked], draw),
                "rejected": respelt(texts[1 - liked], draw),
            }
        )
    outcome = validated(records, by=by)
    assert outcome.error is None
    pairs = outcome.prepared.pairs
    assert sorted([*pairs["row"], *outcome.quarantine["row"]]) == list(range(1, 61))
    assert outcome.quarantine.empty, "no pair is between prompts"
    assert pairs["user_id"].nunique() == 5
    assert outcome.summary["spellings"]["users"]["merged"]["ids"] == 5
    assert outcome.summary["spellings"]["prompts"]["merged"] == 12
    tables = {"prompt": [messages(prompt)[0]["content"] for prompt in pairs["prompt"]]}
    if by == "response":
        tables = {name: pairs[name].tolist() for name in ("chosen", "rejected")}
    placed = {
        (normal_id(text), side)
        for texts in tables.values()
        for text, side in zip(texts, pairs["prompt_split"], strict=True)
    }
    assert len(placed) == 12 * len(tables)
    assert {side for _, side in placed} == set(SPLITS)
    for name, spelt in tables.items():
        assert set(spelt) <= {record[name] for record in records}, "kept as it was written"


def test_the_stages_say_what_was_merged(
    work, data_params, rules, shares, pairs, write_lines, capsys
):
    records = pairs()
    records[7]["user_id"] = "user0 "
    records[8]["prompt"] += "\r\n"
    write_lines(work / "pairs.jsonl", records)
    ingest.run(seed=7, data=data_params())
    validate.run(seed=7, label_noise=0.0, rules=rules(), split=shares())
    said = capsys.readouterr().err
    notes = (
        "validate: warning: users in several spellings (1) count as one each; these differ in "
        'white space, invisible characters or Unicode form: "user0", "user0 "\n'
        "validate: warning: prompts in several spellings (1) stay on one side; these differ in "
        'white space, invisible characters or Unicode form: "Question 8?'
    )
    assert said.startswith("ingest: pairs.jsonl: 50 rows of 5 users\n")
    assert notes in said
    prompts = read_json("reports/validation.json")["spellings"]["prompts"]
    assert prompts["merged"] == 1

    with pytest.raises(UserError, match="validate.min_users is 9"):
        validate.run(seed=7, label_noise=0.0, rules=rules(min_users=9), split=shares())
    assert notes in capsys.readouterr().err, "of data that are refused, too"


def test_a_trial_draws_people_not_spellings(work, data_params, pairs, write_lines):
    records = pairs(users=6)
    for number, record in enumerate(records):
        record["user_id"] += " " * (number % 3)
    write_lines(work / "pairs.jsonl", records)
    ingest.run(seed=7, data=data_params(max_users=2))
    assert len(pd.read_parquet("data/ingested/rows.parquet")) == 20

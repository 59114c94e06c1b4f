"""Row faults, suite faults, and the difference between bad data and a crashed check."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from prlhf.data import ROW_COLUMNS, as_trained
from prlhf.data.ids import content_hash
from prlhf.data.prompts import canonical_prompt
from prlhf.ingest.columns import typed_rows
from prlhf.validation.prepare import REASONS, ValidationResult, flip_labels, prepare, split
from prlhf.validation.suite import Check, Validator

Make = Callable[..., Any]


def to_rows(records: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(records)
    frame["prompt"] = [
        canonical_prompt(prompt) if isinstance(prompt, str) and prompt.strip() else None
        for prompt in frame["prompt"]
    ]
    return typed_rows(frame.assign(row=range(1, len(frame) + 1), source="p.jsonl"))


@pytest.fixture
def validated(rules: Make, shares: Make) -> Callable[..., ValidationResult]:
    """Validate records under the test's rules, with changes."""

    def run(
        records: list[dict[str, Any]],
        label_noise: float = 0.0,
        by: str = "unit",
        **changes: Any,
    ) -> ValidationResult:
        return prepare(
            to_rows(records),
            name="p.jsonl",
            seed=7,
            rules=rules(**changes),
            shares=shares(by=by),
            label_noise=label_noise,
        )

    return run


def quarantined(outcome: ValidationResult) -> dict[int, str]:
    return dict(zip(outcome.quarantine["row"], outcome.quarantine["reason"], strict=True))


def test_clean_data_pass(validated, pairs):
    outcome = validated(pairs())
    assert outcome.error is None
    assert outcome.prepared is not None
    assert outcome.quarantine.empty
    assert tuple(outcome.quarantine.columns) == (*ROW_COLUMNS, "reason")
    summary = outcome.summary
    assert summary["success"]
    assert summary["rows"] == {"ingested": 50, "usable": 50, "quarantined": 0}
    assert summary["users"] == {"seen": 4, "unseen": 1, "few": 0}
    assert summary["balance"]["few_users"] == 0
    assert summary["pairs"] == {"train": 24, "validation": 8, "test": 8, "unseen": 10}
    assert summary["prompts"] == {"train": 6, "validation": 2, "test": 2}
    assert set(summary["quarantined"]) == set(REASONS)
    findings = [each for suite in summary["expectations"].values() for each in suite.values()]
    assert len(findings) > 40
    assert all(finding["success"] for finding in findings)
    assert outcome.warnings == []


BASE = {"user_id": "user0", "prompt": "Extra?", "chosen": "yes", "rejected": "no"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"user_id": None}, "missing_user"),
        ({"user_id": " \t"}, "missing_user"),
        ({"prompt": None}, "empty_prompt"),
        ({"prompt": ""}, "empty_prompt"),
        ({"chosen": None}, "empty_chosen"),
        ({"chosen": "\n"}, "empty_chosen"),
        ({"rejected": None}, "empty_rejected"),
        ({"rejected": ""}, "empty_rejected"),
        ({"chosen": "same", "rejected": "same"}, "chosen_equals_rejected"),
        ({"chosen": "same", "rejected": "same\n"}, "chosen_equals_rejected"),
        ({"chosen": "", "rejected": ""}, "empty_chosen"),
        ({"prompt": "x" * 2001}, "prompt_too_long"),
        ({"chosen": "x" * 100_000}, "response_too_long"),
        ({"rejected": "x" * 1001}, "response_too_long"),
        ({"weight": 0.0}, "bad_weight"),
        ({"weight": -1.0}, "bad_weight"),
        ({"weight": float("inf")}, "bad_weight"),
        ({"weight": None}, "bad_weight"),
    ],
)
def test_a_faulty_row_is_set_aside_with_its_reason(validated, pairs, change, reason):
    good = [record | {"weight": 1.0} for record in pairs()]
    outcome = validated([*good[:20], BASE | {"weight": 1.0} | change, *good[20:]])
    assert outcome.error is None
    assert quarantined(outcome) == {21: reason}
    assert outcome.summary["rows"] == {"ingested": 51, "usable": 50, "quarantined": 1}
    assert outcome.summary["quarantined"][reason] == 1
    assert outcome.quarantine["source"].tolist() == ["p.jsonl"]


def test_limits_are_met_exactly(validated, pairs):
    full = BASE | {"prompt": "x" * 2000, "chosen": "y" * 1000, "rejected": "z" * 1000}
    assert validated([*pairs(), full]).quarantine.empty


def test_of_duplicates_the_first_is_kept(validated, pairs):
    good = pairs()
    outcome = validated([*good, good[3], good[4], good[3]])
    assert quarantined(outcome) == dict.fromkeys((51, 52, 53), "duplicate")


def test_of_contradictions_none_is_kept(validated, pairs):
    good = pairs()
    turned = good[3] | {"chosen": good[3]["rejected"], "rejected": good[3]["chosen"]}
    by_another = good[13] | {"chosen": good[13]["rejected"], "rejected": good[13]["chosen"]}
    outcome = validated([*good, turned, good[3], by_another | {"user_id": "user2"}])
    assert quarantined(outcome) == dict.fromkeys((4, 51, 52), "contradiction")


def test_a_faulty_twin_does_not_cost_the_sound_row(validated, pairs):
    good = [record | {"weight": 1.0} for record in pairs()]
    twin = good[3] | {"weight": 0.0}
    turned = good[4] | {"chosen": good[4]["rejected"], "rejected": good[4]["chosen"], "weight": 0.0}
    outcome = validated([twin, turned, *good])
    assert quarantined(outcome) == {1: "bad_weight", 2: "bad_weight"}


def test_users_with_few_pairs_stay(validated, pairs):
    few = [
        {"user_id": "few", "prompt": f"Question {n}?", "chosen": "yes", "rejected": "no"}
        for n in range(10)
    ]
    whole = validated([*pairs(), *few], min_pairs_per_user=10).prepared
    assert not whole.users["few"].any()
    few[1]["chosen"] = ""
    outcome = validated([*pairs(), *few], min_pairs_per_user=10)
    assert quarantined(outcome) == {52: "empty_chosen"}, "pairs are counted after other faults"
    users = outcome.prepared.users.set_index("user_id")
    assert users.index[users["few"]].tolist() == ["few"]
    assert users.loc["few", "user_index"] > 0
    assert users["seen"].sum() == 5, "the others' places do not hang on it"
    assert outcome.summary["users"] == {"seen": 5, "unseen": 1, "few": 1}
    assert outcome.summary["balance"]["few_users"] == 9 / 59
    (warning,) = outcome.warnings
    assert warning.startswith("1 of 5 seen users have fewer than 10 pairs")
    assert "15.3% of the pairs" in warning


def test_a_population_of_which_most_have_few_pairs_is_kept_whole(validated):
    """Zipf: the user of rank r has 200 / r pairs."""
    records = [
        {"user_id": f"u{rank}", "prompt": f"Q{n}?", "chosen": f"a{n}", "rejected": f"b{n}"}
        for rank in range(1, 201)
        for n in range(max(1, 200 // rank))
    ]
    outcome = validated(records, min_pairs_per_user=4)
    assert outcome.error is None
    assert outcome.quarantine.empty
    assert len(outcome.prepared.users) == 200
    few = outcome.prepared.users["few"]
    assert few.sum() >= 150
    trained = as_trained(outcome.prepared.part("train"), outcome.prepared.users)
    of_few = trained["user_id"].isin(outcome.prepared.users.loc[few, "user_id"])
    assert (trained.loc[of_few, "user_index"] == 0).all()
    assert (trained.loc[~of_few, "user_index"] > 0).all()
    assert of_few.any()
    unseen = outcome.prepared.users.loc[~outcome.prepared.users["seen"]]
    assert (unseen.filter(like="pairs_").sum(axis=1) >= 4).all()
    assert not unseen["few"].any()


def test_label_noise_spares_what_is_measured(validated, pairs):
    records = pairs(users=10, prompts=40)
    clean = validated(records).prepared.pairs
    noisy = validated(records, label_noise=0.3)
    assert noisy.error is None
    flipped = noisy.prepared.pairs["chosen"] != clean["chosen"]
    test = clean["prompt_split"] == "test"
    assert not flipped[test].any(), "also those of unseen users"
    # 320 pairs: the share's standard deviation is 0.026.
    assert 0.2 < flipped[~test].mean() < 0.4
    assert flipped[clean["split"] == "unseen"].any()
    moved = noisy.prepared.pairs[flipped]
    assert moved["chosen"].tolist() == clean.loc[flipped, "rejected"].tolist()
    assert moved["rejected"].tolist() == clean.loc[flipped, "chosen"].tolist()
    assert moved["pair_id"].tolist() == [
        content_hash(row.user_id, row.prompt, row.chosen, row.rejected)
        for row in moved.itertuples()
    ]
    rest = [name for name in clean if name not in ("chosen", "rejected", "pair_id")]
    pd.testing.assert_frame_equal(noisy.prepared.pairs[rest], clean[rest])
    pd.testing.assert_frame_equal(noisy.prepared.pairs[~flipped], clean[~flipped])


def test_noise_on_a_pair_does_not_hang_on_the_others(validated, pairs):
    clean = validated(pairs(users=10, prompts=40)).prepared.pairs
    whole = flip_labels(clean, seed=7, probability=0.4)
    part = clean.iloc[::3]
    pd.testing.assert_frame_equal(flip_labels(part, seed=7, probability=0.4), whole.iloc[::3])
    assert not flip_labels(clean, seed=8, probability=0.4).equals(whole)
    assert flip_labels(clean, seed=7, probability=0.0) is clean


def test_too_many_faulty_rows_stop(validated, pairs):
    bad = [BASE | {"chosen": "", "prompt": f"Bad {n}?"} for n in range(30)]
    good = pairs()
    outcome = validated([*good, *bad, good[0]], max_quarantined=0.3)
    assert outcome.prepared is None
    assert str(outcome.error) == (
        "p.jsonl: 31 of 81 rows are unusable: 30 empty_chosen, 1 duplicate; "
        "validate.max_quarantined allows a share of 0.3"
    )
    assert len(outcome.quarantine) == 31
    assert not outcome.summary["success"]
    assert validated([*good, *bad, good[0]], max_quarantined=31 / 81).error is None


def test_too_few_users_stop(validated, pairs):
    outcome = validated(pairs(users=3), min_users=4)
    assert "at least 2 usable pairs (validate.min_pairs_per_user): 3;" in str(outcome.error)
    assert "validate.min_users is 4" in str(outcome.error)
    one = validated([BASE])
    assert one.error is not None
    assert len(one.error.lines()) == 1
    assert one.quarantine.empty


@pytest.mark.parametrize("name", ["user_id", "prompt", "chosen", "rejected"])
def test_a_column_without_a_value_stops(validated, pairs, name):
    outcome = validated([pair | {name: None} for pair in pairs()])
    reason = "missing_user" if name == "user_id" else f"empty_{name}"
    assert f"50 of 50 rows are unusable: 50 {reason}" in str(outcome.error)


def test_too_few_prompts_stop(validated, pairs):
    outcome = validated(pairs(prompts=2))
    assert "2 distinct prompts are too few" in str(outcome.error)
    assert outcome.prepared is None
    assert outcome.summary["rows"]["usable"] == 10


def test_labels_that_carry_nothing_but_length_are_warned_of(validated, pairs):
    outcome = validated([pair | {"chosen": pair["chosen"] + " and more"} for pair in pairs()])
    assert outcome.error is None
    (warning,) = outcome.warnings
    assert warning.startswith("the longer response is the chosen one in 100.0% of the pairs")
    assert not outcome.summary["expectations"]["prepared"]["class_balance"]["success"]


def test_leakage_is_found(validated, pairs, monkeypatch):
    """A fault of the splitting itself, planted: the suite does not trust it."""

    def leaky(rows: pd.DataFrame, **arguments: Any) -> Any:
        prepared = split(rows, **arguments)
        of_seen = prepared.pairs.index[prepared.pairs["split"] == "train"][0]
        prepared.pairs.loc[of_seen, ["split", "prompt_split"]] = "test"
        return prepared

    monkeypatch.setattr("prlhf.validation.prepare.split", leaky)
    outcome = validated(pairs())
    assert "prompts or units are on more than one side of the split" in str(outcome.error)
    assert outcome.prepared is None


def test_a_leaking_response_is_found(validated, pairs, monkeypatch):
    def leaky(rows: pd.DataFrame, **arguments: Any) -> Any:
        prepared = split(rows, **arguments)
        trained = prepared.pairs.index[prepared.pairs["split"] == "train"][0]
        tested = prepared.pairs.index[prepared.pairs["split"] == "test"][0]
        prepared.pairs.loc[tested, "chosen"] = prepared.pairs.loc[trained, "chosen"]
        return prepared

    assert validated(pairs(), by="response").error is None
    monkeypatch.setattr("prlhf.validation.prepare.split", leaky)
    outcome = validated(pairs(), by="response")
    assert "1 responses" in str(outcome.error) or "2 responses" in str(outcome.error)
    assert "are on more than one side of the split" in str(outcome.error)


def test_the_summary_is_plain_and_the_same_every_time(validated, pairs):
    records = [*pairs(), pairs()[0], BASE | {"chosen": ""}]
    first, second = (json.dumps(validated(records).summary, allow_nan=False) for _ in range(2))
    assert first == second
    assert "/" not in first.replace("0/1", "")


def test_a_crashed_check_is_no_verdict_on_the_data():
    from great_expectations.expectations import ExpectColumnValuesToNotBeNull  # type: ignore[attr-defined]

    frame = pd.DataFrame({"a": [1]})
    check = Check("there", ExpectColumnValuesToNotBeNull(column="b"))
    with pytest.raises(RuntimeError, match='the check there crashed: .*"b"'):
        Validator().run("suite", frame, [check])


ODD = ["$HOME", "${HOME}", "$unset", "a\\$b", "\\\\$HOME", "~", "%(x)s", "é'\"`", " {0} ", "$"]


@pytest.mark.parametrize("seed", range(3))
def test_data_docs_are_where_they_belong_whatever_the_path(tmp_path, validated, pairs, seed):
    """Great Expectations puts the environment's values for `$HOME` in a path."""
    names = random.Random(seed).sample(ODD, len(ODD))
    directory = tmp_path.joinpath(*names, "docs")
    directory.mkdir(parents=True)
    before = set(tmp_path.rglob("*"))
    validated(pairs()).validator.write_docs(directory)
    made = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert directory / "index.html" in made
    assert all(path.is_relative_to(directory) for path in made)


def test_nothing_is_printed_or_warned(validated, pairs, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        validated([*pairs(), pairs()[0]])
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""

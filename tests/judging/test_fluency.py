"""Words, repetition, fluency states and the judges."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prlhf.judging import fluency
from prlhf.judging.fluency import repetition
from prlhf.judging.judges import Oracle, get_oracle
from prlhf.params import DataParams
from prlhf.tasks import built_in_tasks, word_count, words
from prlhf.tasks.style import reading_grade, syllables, warmth

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  \n\t ", []),
        ("... -- !?", []),
        ("Don't panic, Arthur!", ["don't", "panic", "arthur"]),
        ("a well-known (and old) fact.", ["a", "well-known", "and", "old", "fact"]),
        ("costs 3.50 or 4", ["costs", "3.50", "or", "4"]),
        ("__init__ * bold *", ["init", "bold"]),
        ("Straße ÉTÉ", ["strasse", "été"]),
        ("水很清。", ["水", "很", "清"]),
        ("東京 is big", ["東", "京", "is", "big"]),
        ("안녕하세요 세계", ["안녕하세요", "세계"]),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


def test_repetition_counts_ngrams_seen_before():
    assert repetition("") == 0.0
    assert repetition("no no") == 0.0
    assert repetition("one two three four five") == 0.0
    # Four 3-grams, two distinct: "a b a", "b a b", "a b a", "b a b".
    assert repetition("a b a b a b") == 0.5
    assert repetition("A, b! a. B; a b?") == 0.5
    assert repetition("the same again " * 30) > 0.95
    assert repetition("哈" * 30) > 0.9


@given(st.text(max_size=200))
def test_words_and_repetition_take_any_text(text):
    found = words(text)
    assert all(word and not word.isspace() for word in found)
    assert 0.0 <= repetition(text) < 1.0
    assert word_count(text) == len(found)
    assert np.isfinite(reading_grade(text))
    assert warmth(text) >= 0.0


@given(st.lists(st.sampled_from("abcdefgh"), max_size=40))
def test_repetition_equals_its_definition(letters):
    grams = [tuple(letters[i : i + 3]) for i in range(len(letters) - 2)]
    repeated = sum(gram in grams[:i] for i, gram in enumerate(grams))
    expected = repeated / len(grams) if grams else 0.0
    assert repetition(" ".join(letters)) == pytest.approx(expected)


def generations(texts, nll_per_token=1.0):
    ids = [f"g{i}" for i in range(len(texts))]
    tokens = np.array([len(text.split()) for text in texts])
    scores = pd.DataFrame(
        {"generation_id": ids[::-1], "nll": (tokens * nll_per_token)[::-1], "tokens": tokens[::-1]}
    )
    return pd.DataFrame({"generation_id": ids, "text": texts}), scores


LIMITS = {"repetition": 0.3, "nll_above_base": 3.0}


def states(texts, nll_per_token=1.0, base_nll=1.0):
    generated, scores = generations(texts, nll_per_token)
    measured = fluency.measure_texts(generated, scores, base_nll, LIMITS)
    return list(measured["state"])


def test_states_of_texts():
    texts = ["A fine short answer.", "", " ?! ", "the same again " * 9, "Yes.", "水很清。也很冷。"]
    assert states(texts) == ["healthy", "empty", "empty", "degenerate", "healthy", "healthy"]


def test_improbable_text_is_degenerate_only_against_a_known_base():
    texts = ["blorp fnord quux zyx"]
    assert states(texts, nll_per_token=4.5) == ["degenerate"]
    assert states(texts, nll_per_token=3.9) == ["healthy"]
    assert states(texts, nll_per_token=4.5, base_nll=None) == ["healthy"]


def test_nll_is_per_token_matched_by_id_and_missing_without_tokens():
    generated, scores = generations(["one two", "", "three"], np.array([2.0, 5.0, 1.0]))
    measured = fluency.measure_texts(generated, scores, None, LIMITS)
    np.testing.assert_array_equal(measured["nll"], [2.0, np.nan, 1.0])
    assert fluency.mean_nll(generated, scores) == pytest.approx(1.5)
    assert fluency.mean_nll(generated, None) is None
    assert fluency.mean_nll(generated.iloc[[1]], scores) is None


@pytest.mark.parametrize(
    ("word", "count"),
    [
        ("cat", 1), ("make", 1), ("makes", 1), ("table", 2), ("mile", 1), ("miles", 1),
        ("walked", 1), ("wanted", 2), ("boxes", 2), ("played", 1), ("water", 2), ("the", 1),
        ("beautiful", 3), ("abscission", 3), ("photoperiod", 4), ("rhythm", 1), ("42", 1),
    ],
)  # fmt: skip
def test_syllables(word, count):
    assert syllables(word) == count


def test_reading_grade_is_the_formula():
    # 8 words, 2 sentences, 8 syllables.
    text = "The cat sat down. The dog ran off."
    assert reading_grade(text) == pytest.approx(0.39 * 4 + 11.8 * 1 - 15.59)
    assert reading_grade("...") == 0.0


def test_reading_grade_orders_simple_and_expert():
    simple = "Put the soup in a warm jar. Shut the lid. It will stay hot."
    expert = (
        "Minimise conductive and convective losses with a preheated, evacuated vessel, and limit "
        "the headspace to reduce evaporative cooling."
    )
    assert reading_grade(simple) < 3 < 12 < reading_grade(expert)


def test_warmth_orders_warm_and_curt():
    warm = "What a lovely question! Try a good flask, my friend, and enjoy every spoonful!"
    curt = "Use a flask. It holds heat, and that is all there is to say."
    assert warmth(warm) > 15 > warmth(curt) == 0.0
    # A single kind word is not a warm answer.
    assert warmth("Thanks") < warmth(warm)


def test_length_oracle():
    judge = get_oracle("length")
    verdict = judge.compare(
        ["a b c", "a b c", "a b", "a b"], ["a b", "a b", "c d", "c d e"],
        ["longer", "shorter", "longer", "shorter"],
    )  # fmt: skip
    assert verdict.tolist() == [1, -1, 0, 1]


def test_style_oracle_speaks_for_six_groups_that_are_opposed_in_pairs():
    judge = get_oracle("style")
    warm, curt = "Great question, my friend! Enjoy it!", "Use a flask. It holds heat."
    for one, other in (("simple", "expert"), ("concise", "thorough"), ("warm", "curt")):
        verdict = judge.compare([warm, warm], [curt, curt], [one, other])
        assert verdict[0] == -verdict[1]
    assert judge.compare([warm], [curt], ["warm"]).tolist() == [1]
    assert set(judge.task.groups) == {"simple", "expert", "concise", "thorough", "warm", "curt"}


def test_reading_grades_half_a_grade_apart_tie():
    judge = get_oracle("style")
    near = "The cat sat down. The dog ran off."
    assert judge.compare([near], ["The cat sat down. The dog ran away off."], ["simple"])[0] == 1
    assert judge.compare([near], ["The cow sat down. The dog ran off."], ["simple"])[0] == 0


def test_oracles_by_task():
    assert get_oracle(None) is None
    assert get_oracle("something else") is None
    assert get_oracle("length") == Oracle(built_in_tasks()["length"])


def test_a_task_is_named_in_params_and_complete():
    allowed = set(get_args(DataParams.model_fields["name"].annotation))
    tasks = built_in_tasks()
    assert set(tasks) == allowed, (
        "a built-in task needs both: a module of prlhf.tasks with a TASK of its name, and its name "
        "among the values of DataParams.name"
    )
    for name, task in tasks.items():
        assert {user.group for user in task.users} == set(task.groups), (
            f"{name}: every group has users, and every user is in one of the groups"
        )
        responses = Path("data/seed") / name / "responses.jsonl.gz"
        assert (ROOT / responses).is_file(), f"{name}: {responses} is missing"

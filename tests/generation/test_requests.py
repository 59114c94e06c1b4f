"""Who answers what in the `generate` stage."""

from __future__ import annotations

import pandas as pd
import pytest

from prlhf.generation import request_table, sample_prompts

PROMPTS = pd.DataFrame({"prompt_id": ["p1", "p2"], "prompt": ["a", "b"]})
USERS = pd.DataFrame(
    {
        "user_id": ["zoe", "cyd", "ann", "bob"],
        "user_index": [0, 3, 1, 2],
        "group": ["x", "y", "x", None],
        "user_text": ["I am z", "I am c", "I am a", None],
        "seen": [False, True, True, True],
    }
)


def test_every_seen_user_and_the_generic_one_answer_every_prompt() -> None:
    rows = request_table(PROMPTS, USERS, personalized=True, reads_text=False, most=None)
    asked = list(zip(rows["user_index"], rows["prompt_id"], strict=True))
    assert asked == [(u, p) for u in (1, 2, 3, 0) for p in ("p1", "p2")]
    assert rows["condition"].tolist() == ["user"] * 6 + ["generic"] * 2
    assert rows["user_id"].tolist()[:6] == ["ann", "ann", "bob", "bob", "cyd", "cyd"]
    assert rows["user_id"].isna().tolist() == [False] * 6 + [True] * 2
    assert rows["group"].tolist()[0] == "x"
    assert rows[rows["condition"] == "generic"]["group"].isna().all()


def test_a_method_without_users_answers_as_the_generic_one() -> None:
    rows = request_table(PROMPTS, USERS, personalized=False, reads_text=False, most=None)
    assert rows["condition"].tolist() == ["generic"] * 2
    assert rows["user_index"].tolist() == [0, 0]
    assert rows["prompt_id"].tolist() == ["p1", "p2"]


def test_what_unseen_users_say_tells_them_apart() -> None:
    users = pd.concat([USERS, USERS.iloc[:1].assign(user_id="abe", user_text="I am b")])
    rows = request_table(PROMPTS, users, personalized=True, reads_text=True, most=None)
    assert rows["condition"].tolist() == ["user"] * 6 + ["unseen"] * 4 + ["generic"] * 2
    unseen = rows[rows["condition"] == "unseen"]
    assert unseen["user_id"].tolist() == ["abe", "abe", "zoe", "zoe"]
    assert unseen["user_text"].tolist() == ["I am b"] * 2 + ["I am z"] * 2
    assert unseen["user_index"].tolist() == [0] * 4
    assert (
        rows["user_text"].isna().tolist() == [False, False, True, True] + [False] * 6 + [True] * 2
    )
    some = request_table(PROMPTS, users, personalized=True, reads_text=True, most=1)
    assert some["condition"].tolist() == ["user"] * 2 + ["unseen"] * 2 + ["generic"] * 2


@pytest.mark.parametrize(("most", "expected"), [(1, [1]), (2, [1, 3]), (3, [1, 2, 3])])
def test_many_users_are_thinned_out_evenly(most: int, expected: list[int]) -> None:
    rows = request_table(PROMPTS, USERS, personalized=True, reads_text=False, most=most)
    assert sorted(set(rows["user_index"]) - {0}) == expected


def test_prompts_are_distinct_and_a_sample_is_fixed() -> None:
    test = pd.DataFrame({"prompt_id": list("cabbadec"), "prompt": list("CABBADEC")})
    everything = sample_prompts(test, None, seed=0)
    assert everything["prompt_id"].tolist() == list("abcde")
    assert everything["prompt"].tolist() == list("ABCDE")
    some = sample_prompts(test, 3, seed=0)
    assert len(some) == 3
    assert some["prompt_id"].is_monotonic_increasing
    assert some.equals(sample_prompts(test.iloc[::-1], 3, seed=0))
    samples = {tuple(sample_prompts(test, 3, seed=s)["prompt_id"]) for s in range(8)}
    assert len(samples) > 1

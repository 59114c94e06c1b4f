"""A language model as judge: both orders, what it is told of users, what it counts."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prlhf.data.prompts import canonical_prompt
from prlhf.judging.llm_client import Cache, Client
from prlhf.judging.llm_judge import (
    CORRECTION,
    Answer,
    KnownUsers,
    LlmJudge,
    combine,
    known_users,
    read_answer,
)
from prlhf.params import load

PROMPT = canonical_prompt("Why?")
PARAMS = load(Path(__file__).resolve().parents[2] / "params.yaml").judge.llm.model_copy(
    update={"base_url": "http://nowhere/v1", "model": "tester", "examples": 2}
)
SIDES = st.sampled_from([1, 0, -1, None])


class Script(Client):
    """Answers from a function of the question's text instead of a server."""

    def __init__(self, answer, root):
        super().__init__(PARAMS, read_answer, CORRECTION, Cache(root))
        self.answer = answer
        self.asked = []

    def ask(self, questions, label):
        texts = [messages[-1]["content"] for messages in questions]
        self.asked += texts
        winners = [self.answer(text) for text in texts]
        return [winner and Answer(winner, f"reason {winner}") for winner in winners]


def shown_first(text: str) -> str:
    return text.split("<answer_a>\n")[1].split("\n")[0]


def judge(answer, root, users=None) -> LlmJudge:
    return LlmJudge(Script(answer, root), users or KnownUsers("criteria", {"g": "brevity"}, {}))


def questions(*pairs, group="g", user="ann", cut=()):
    return pd.DataFrame(
        {
            "user_id": user,
            "group": group,
            "prompt_id": "p",
            "prompt": PROMPT,
            "first": [first for first, _ in pairs],
            "second": [second for _, second in pairs],
            "first_finished": [first not in cut for first, _ in pairs],
            "second_finished": [second not in cut for _, second in pairs],
        }
    )


def rows(table):
    return [tuple(None if pd.isna(v) else v for v in row) for row in table.to_numpy().tolist()]


@given(SIDES, SIDES)
def test_orders_that_disagree_are_a_tie_and_unreadable_ones_no_verdict(forward, backward):
    verdict = combine(forward, backward)
    if forward is None or backward is None:
        assert verdict is None
    elif forward == backward:
        assert verdict == forward
    else:
        assert verdict == 0
    assert combine(backward, forward) == verdict


def test_every_question_is_asked_in_both_orders(tmp_path):
    one = judge(lambda text: "A" if shown_first(text) == "good" else "B", tmp_path)
    found = one.verdicts(questions(("good", "bad"), ("bad", "good")))
    assert [shown_first(text) for text in one.client.asked] == ["good", "bad", "bad", "good"]
    assert rows(found) == [
        (1, "first", "first", "reason A"),
        (-1, "second", "second", "reason B"),
    ]


def test_the_judge_is_told_which_answer_was_cut_off(tmp_path):
    one = judge(lambda _: "A", tmp_path)
    one.verdicts(questions(("good and", "bad."), ("x.", "y."), cut=("good and",)))
    mark = "[cut off by a limit of length]"
    assert f"<answer_a>\ngood and {mark}\n</answer_a>" in one.client.asked[0]
    assert f"<answer_b>\ngood and {mark}\n</answer_b>" in one.client.asked[1]
    assert [text.count(mark) for text in one.client.asked] == [1, 1, 0, 0]


def test_a_judge_with_a_place_instead_of_an_opinion_gives_ties(tmp_path):
    one = judge(lambda _: "A", tmp_path)
    found = one.verdicts(questions(("good", "bad"), ("x", "y")))
    assert rows(found)[0][:3] == (0, "first", "second")
    assert one.report()["comparisons"] == {
        "asked": 2,
        "same_in_both_orders": 0,
        "without_verdict": 0,
        "shown_first_won": 4,
        "shown_second_won": 0,
    }


def test_half_a_verdict_is_none(tmp_path):
    one = judge(lambda text: "A" if shown_first(text) == "good" else None, tmp_path)
    found = one.verdicts(questions(("good", "bad"), ("dull", "plain")))
    assert rows(found) == [(None, "first", None, "reason A"), (None, None, None, None)]
    counts = one.report()["comparisons"]
    assert (counts["asked"], counts["without_verdict"]) == (2, 2)


def test_no_questions(tmp_path):
    one = judge(lambda _: "A", tmp_path)
    found = one.verdicts(questions())
    assert list(found.columns) == ["verdict", "forward", "reversed", "reason"]
    assert found.empty


def pairs(user, count, text="t"):
    return pd.DataFrame(
        {
            "pair_id": [f"{user}{i}" for i in range(count)],
            "user_id": user,
            "prompt": [canonical_prompt(f"{user} asked {i}") for i in range(count)],
            "chosen": [f"{text} chosen {i}" for i in range(count)],
            "rejected": [f"{text} rejected {i}" for i in range(count)],
        }
    )


USERS = pd.DataFrame(
    {
        "user_id": ["ann", "ben", "cas", "dee"],
        "user_text": ["I like cats.", None, None, None],
    }
)


def known(context, seed=7, **changes) -> KnownUsers:
    settings = {"context": context, "criteria": {"g": "own words"}, "example_chars": 100}
    table = pd.concat([pairs("ann", 5), pairs("ben", 1)], ignore_index=True)
    return known_users(USERS, table, PARAMS.model_copy(update=settings | changes), seed)


@pytest.mark.parametrize(
    ("context", "user", "group", "told"),
    [
        ("criteria", "ann", "g", "own words"),
        ("criteria", "ann", "shorter", "the shorter one is better"),
        ("criteria", "ann", "unheard of", ""),
        ("criteria", "ann", None, ""),
        ("profile", "ann", "g", "I like cats."),
        ("profile", "ben", "g", "ben asked 0"),
        ("profile", "cas", "g", ""),
        ("auto", "ann", "g", "own words"),
        ("auto", "ann", None, "I like cats."),
        ("auto", "cas", None, ""),
    ],
)
def test_what_a_judge_is_told_of_a_user(tmp_path, context, user, group, told):
    users = known(context)
    about = users.about(user, group)
    assert told in about
    assert bool(told) == bool(about)
    asked = questions(("a", "b"), group=group, user=user)
    assert judge(lambda _: "A", tmp_path, users).knows(asked).tolist() == [bool(told)]


def test_examples_are_a_few_of_the_users_own_choices_the_same_every_time():
    about = known("profile").about("ann", None)
    assert about.count("<choice>") == 2
    assert "ben asked" not in about
    assert about == known("profile").about("ann", None)
    drawn = {known("profile", seed=seed).about("ann", None) for seed in range(8)}
    assert len(drawn) > 1
    assert known("profile", examples=0).about("ann", None).count("<choice>") == 0
    assert known("profile", examples=9).about("ann", None).count("<choice>") == 5


def test_criteria_of_ones_own_go_before_the_built_in_ones():
    assert "as I say" in known("auto", criteria={"shorter": "as I say"}).about("ann", "shorter")


def test_users_without_any_text_column():
    users = known_users(USERS[["user_id"]], pairs("ann", 1), PARAMS, 0)
    assert "ann asked 0" in users.about("ann", None)


def test_the_description_names_model_and_context(tmp_path):
    one = judge(lambda _: "A", tmp_path, KnownUsers("profile", {}, {}))
    assert one.name == "tester"
    assert "tester" in one.description
    assert "has said and chosen earlier" in one.description

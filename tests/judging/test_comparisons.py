"""Which answers meet, what is decided without a judge, and what judges make of each other."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prlhf.judging.comparisons import (
    KEYS,
    comparisons,
    judge,
    judge_choices,
    judged_unseen_users,
    meetings,
    settle,
)
from prlhf.judging.judges import get_oracle
from prlhf.metrics.intervals import Intervals
from prlhf.metrics.preferences import (
    Verdicts,
    cohens_kappa,
    put_judges,
    put_win_rates,
)
from prlhf.metrics.tree import MetricTree

ORDER = {"base": False, "dpo": False, "pdpo": True}


def answers(rows):
    """Measured texts from (condition, user, group, prompt, text, state)."""
    table = pd.DataFrame(
        rows, columns=["condition", "user_id", "group", "prompt_id", "text", "state"]
    )
    return table.assign(prompt=table["prompt_id"], finished=table["text"] != "a b c")


def measured():
    generic = ("generic", None, None)
    return {
        "base": answers([(*generic, "p1", "a b", "healthy"), (*generic, "p2", "a b c", "healthy")]),
        "dpo": answers([(*generic, "p1", "a b", "healthy")]),
        "pdpo": answers(
            [
                ("user", "ann", "longer", "p1", "a b c", "healthy"),
                ("user", "ann", "longer", "p2", "", "empty"),
                ("user", "cas", "shorter", "p1", "a b", "healthy"),
                ("user", "ned", "unheard of", "p1", "a", "healthy"),
                (*generic, "p1", "a", "healthy"),
            ]
        ),
    }


UNSEEN = pd.DataFrame({"user_id": ["dee", "eve"], "group": ["shorter", "longer"]})


class Contrary:
    """Takes the answer that the oracle does not; has no verdict on one user; keeps a record."""

    name = "contrary"
    description = "says the opposite"

    def __init__(self, speechless=""):
        self.asked = []
        self.speechless = speechless

    def knows(self, questions):
        return (~questions["user_id"].isin(["dee", "ned"])).to_numpy()

    def verdicts(self, questions):
        self.asked += list(zip(questions["user_id"], questions["prompt_id"], strict=True))
        found = -get_oracle("length").verdicts(questions)["verdict"]
        found = found.mask((questions["user_id"] == self.speechless).to_numpy())
        return pd.DataFrame({"verdict": found, "reason": "because"})


def test_each_user_meets_what_the_other_methods_give_everybody():
    table = comparisons(measured(), ORDER, UNSEEN)
    against_dpo = table[table["other"] == "dpo"]
    assert against_dpo[["user_id", "seen", "first", "second"]].to_numpy().tolist() == [
        ["ann", True, "a b c", "a b"],
        ["cas", True, "a b", "a b"],
        ["ned", True, "a", "a b"],
        ["dee", False, "a", "a b"],
        ["eve", False, "a", "a b"],
    ]
    assert against_dpo["first_finished"].tolist() == [False, True, True, True, True]
    assert against_dpo["second_finished"].all()
    # An answer that was cut off leaves no comparison between finished ones.
    judged = judge(table, {"oracle": get_oracle("length")}).table
    whole = judged.set_index(["other", "user_id", "prompt_id"])["finished"]
    assert whole["dpo"].tolist() == [False, True, True, True]
    assert not whole["base", "ann", "p2"]
    # The base model answered another prompt; the personalised generic answer to it is missing.
    assert (table["other"] == "base").sum() == 6
    assert set(table["method"]) == {"pdpo"}


def test_personalised_methods_meet_once():
    order = {"base": False, "prompted": True, "dpo": False, "pdpo": True, "pdpo_text": True}
    assert meetings(order) == [
        ("pdpo", "base"),
        ("pdpo", "dpo"),
        ("pdpo", "pdpo_text"),
        ("pdpo", "prompted"),
        ("pdpo_text", "base"),
        ("pdpo_text", "dpo"),
        ("pdpo_text", "prompted"),
        ("prompted", "base"),
        ("prompted", "dpo"),
    ]
    told = [
        ("user", "ann", "longer", "p1", "told ann", "healthy"),
        ("user", "cas", "shorter", "p2", "told cas", "healthy"),
        ("unseen", "eve", "longer", "p1", "told eve", "healthy"),
        ("generic", None, None, "p1", "nobody", "degenerate"),
    ]
    texts = {**measured(), "prompted": answers(told)}
    table = comparisons(texts, order, UNSEEN)
    between = table[(table["method"] == "pdpo") & (table["other"] == "prompted")]
    # Where both answered a user: under p1 Ann and, unknown to pdpo, Eve.
    assert between[[*KEYS[2:], "first", "second", "second_state"]].to_numpy().tolist() == [
        ["ann", "longer", "p1", True, "a b c", "told ann", "healthy"],
        ["eve", "longer", "p1", False, "a", "told eve", "healthy"],
    ]
    assert len(table[(table["method"] == "prompted") & (table["other"] == "dpo")]) == 2
    without = comparisons({k: v for k, v in texts.items() if k != "prompted"}, order, UNSEEN)
    pd.testing.assert_frame_equal(without, comparisons(measured(), ORDER, UNSEEN))


def test_without_a_personalised_method_nothing_meets():
    assert comparisons(measured(), dict.fromkeys(ORDER, False), UNSEEN).empty
    assert comparisons({}, {}, UNSEEN).empty


def test_broken_answers_lose_and_equal_ones_tie_before_a_judge_is_asked():
    contrary = Contrary()
    judged = judge(
        comparisons(measured(), ORDER, UNSEEN), {"oracle": get_oracle("length"), "llm": contrary}
    )
    rows = judged.table.set_index(["other", "user_id", "prompt_id"])
    assert list(judged.table.columns) == [
        *KEYS, "finished", "asked", "verdict", "verdict_llm", "reason",
    ]  # fmt: skip
    # The oracle knows no such group.
    assert "ned" not in set(judged.table["user_id"])
    # An empty answer, for whom it may be.
    assert rows.loc[("base", "ann", "p2"), ["asked", "verdict", "verdict_llm"]].tolist() == [
        False, -1, -1,
    ]  # fmt: skip
    assert rows.loc[("dpo", "cas", "p1"), ["asked", "verdict", "verdict_llm"]].tolist() == [
        False, 0, 0,
    ]  # fmt: skip
    assert rows.loc[("dpo", "ann", "p1"), ["asked", "verdict", "verdict_llm"]].tolist() == [
        True, 1, -1,
    ]  # fmt: skip
    assert rows.loc[("dpo", "dee", "p1"), "verdict"] == 1
    assert rows.loc[("dpo", "dee", "p1"), ["verdict_llm", "reason"]].isna().all()
    assert (judged.broken, judged.equal) == (1, 2)
    assert sorted(contrary.asked) == [("ann", "p1"), ("ann", "p1"), ("eve", "p1"), ("eve", "p1")]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_broken_texts_lose_to_healthy_ones_and_tie_with_each_other(pairs):
    state = {True: "healthy", False: "degenerate"}
    table = pd.DataFrame({"first": "a", "second": "b"}, index=range(len(pairs)))
    table["first_state"], table["second_state"] = zip(
        *[(state[first], state[second]) for first, second in pairs], strict=True
    )
    wanted = {(True, False): 1, (False, True): -1, (True, True): None, (False, False): 0}
    found = [None if pd.isna(value) else value for value in settle(table)]
    assert found == [wanted[pair] for pair in pairs]
    equal = settle(table.assign(second="a"))
    assert equal.tolist() == [wanted[pair] or 0 for pair in pairs]


def choices(n=6):
    return pd.DataFrame(
        {
            "pair_id": [f"c{i}" for i in range(n)],
            "prompt_id": [f"p{i}" for i in range(n)],
            "prompt": [f"p{i}" for i in range(n)],
            "user_id": ["ann", "dee"] * (n // 2),
            "group": ["longer"] * n,
            "chosen": ["a b"] * n,
            "rejected": ["a"] * n,
        }
    )


def test_a_costly_judge_is_asked_about_a_sample_of_choices():
    contrary = Contrary()
    judges = {"oracle": get_oracle("length"), "llm": contrary}
    found = judge_choices(choices(), judges, {"llm": 2}, pd.Series([5, 4, 3, 2, 1, 0]))
    assert found["verdict"].tolist() == [1] * 6
    # The first two by that order, of those that it knows the users of.
    assert found["verdict_llm"].dropna().to_dict() == {2: -1, 4: -1}
    alone = judge_choices(choices(), {"llm": contrary}, {"llm": 2}, pd.Series([5, 4, 3, 2, 1, 0]))
    assert alone["pair_id"].tolist() == ["c2", "c4"]
    none = judge_choices(choices(), {"llm": contrary}, {"llm": 0}, pd.Series(range(6)))
    assert none.empty


def test_held_out_users_are_spread_over_their_groups():
    users = pd.DataFrame({"user_id": list("abcdef"), "group": list("xxyyzz"), "seen": False})
    users.loc[6] = ["known", "x", True]
    assert judged_unseen_users(users, [], None)["user_id"].tolist() == list("abcdef")
    assert judged_unseen_users(users, [], 6)["user_id"].tolist() == list("abcdef")
    assert judged_unseen_users(users.iloc[::-1], [], 3)["group"].tolist() == ["x", "y", "z"]


def test_held_out_users_are_those_whom_every_method_answered():
    users = pd.DataFrame({"user_id": list("abcdef"), "group": None, "seen": False})
    everybody, some, others = (
        answers([("unseen", user, None, "p1", "a", "healthy") for user in answered])
        for answered in ("", "fca", "bcf")
    )
    assert judged_unseen_users(users, [everybody], None)["user_id"].tolist() == list("abcdef")
    assert judged_unseen_users(users, [everybody, some], None)["user_id"].tolist() == list("acf")
    assert judged_unseen_users(users, [some, others], 5)["user_id"].tolist() == list("cf")


def test_comparisons_without_a_verdict_are_no_ties():
    judges = {"llm": Contrary(speechless="ann")}
    table = judge(comparisons(measured(), ORDER, UNSEEN), judges).table
    tree, notes = MetricTree(Intervals()), []
    put_win_rates(tree, Verdicts(table, choices(), ["llm"]), "pdpo", "dpo", notes)
    assert notes == [
        "pdpo against dpo: the judge gave no verdict on 1 of 3 comparisons, which are left out."
    ]
    rates = tree.values["win_rate"]["pdpo_vs_dpo"]
    assert (rates["tie"], rates["comparisons"]) == (1.0, 1)
    assert rates["unseen"]["win"] == 1.0


def test_kappa_by_hand():
    # 20 pairs of verdicts: 10 and 5 the same, 5 not.
    cells = np.array([[10, 0, 2, 0, 0, 1, 2, 0, 5]], dtype=float)
    chance = (12 * 12 + 1 * 0 + 7 * 8) / 400
    assert cohens_kappa(cells)[0] == pytest.approx((0.75 - chance) / (1 - chance))
    assert np.isnan(cohens_kappa(np.array([[4.0] + [0.0] * 8])))[0]
    assert np.isnan(cohens_kappa(np.zeros((1, 9))))[0]


VERDICT = st.sampled_from([1, 0, -1])


@given(st.lists(st.tuples(VERDICT, VERDICT), min_size=1, max_size=12))
def test_agreement_between_judges_equals_a_loop(pairs):
    one, other = zip(*pairs, strict=True)
    n = len(pairs)
    table = pd.DataFrame(
        {
            "prompt_id": [f"p{i % 3}" for i in range(n)],
            "asked": True,
            "verdict": pd.array(one, dtype="Int8"),
            "verdict_llm": pd.array(other, dtype="Int8"),
        }
    )
    both = choices().assign(
        verdict=pd.array([1, 1, -1, 0, 1, 1], dtype="Int8"),
        verdict_llm=pd.array([1, None, -1, None, -1, None], dtype="Int8"),
    )
    tree = MetricTree(Intervals())
    put_judges(tree, Verdicts(table, both, ["oracle", "llm"]))
    found = tree.values["judges"]
    assert found["oracle"] == {"choices": pytest.approx(4.5 / 6)}
    assert found["llm"] == {"choices": pytest.approx(1 / 3, abs=1e-6)}
    agreed = sum(a == b for a, b in pairs) / n
    assert found["oracle_vs_llm"]["agreement"] == pytest.approx(agreed, abs=1e-6)
    assert found["oracle_vs_llm"]["comparisons"] == n
    chance = sum((one.count(v) / n) * (other.count(v) / n) for v in (1, 0, -1))
    if chance < 1:
        kappa = (agreed - chance) / (1 - chance)
        assert found["oracle_vs_llm"]["kappa"] == pytest.approx(kappa, abs=1e-5)
    else:
        assert "kappa" not in found["oracle_vs_llm"]


def test_comparisons_that_no_judge_was_asked_about_are_no_agreement():
    table = pd.DataFrame(
        {
            "prompt_id": ["p1", "p2"],
            "asked": [False, True],
            "verdict": pd.array([1, 1], dtype="Int8"),
            "verdict_llm": pd.array([1, -1], dtype="Int8"),
            "forward": ["first", "second"],
            "reversed": ["first", "first"],
        }
    )
    both = choices().assign(verdict=1, verdict_llm=1)
    tree = MetricTree(Intervals())
    put_judges(tree, Verdicts(table, both, ["oracle", "llm"]))
    assert tree.values["judges"]["oracle_vs_llm"]["agreement"] == 0.0
    assert tree.values["judges"]["llm"]["same_in_both_orders"] == 0.0


def test_one_judge_alone_leaves_the_metrics_as_they_are():
    table = judge(comparisons(measured(), ORDER, UNSEEN), {"oracle": get_oracle("length")}).table
    tree = MetricTree(Intervals())
    put_judges(tree, Verdicts(table, choices().assign(verdict=1), ["oracle"]))
    assert tree.values == {}

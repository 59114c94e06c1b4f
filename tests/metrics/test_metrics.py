"""Every figure of metrics.json against a computation by hand, and the tables beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prlhf.judging.comparisons import comparisons, judge_choices, reading_order
from prlhf.judging.comparisons import judge as judge_all
from prlhf.judging.fluency import Tables, measure_methods
from prlhf.judging.judges import get_oracle
from prlhf.metrics import preferences, tables
from prlhf.metrics.intervals import Intervals
from prlhf.metrics.metrics import Evaluation, headline_figures
from prlhf.metrics.preferences import Verdicts
from prlhf.report import headline
from prlhf.report.summary import render

ROOT = Path(__file__).resolve().parents[2]
PROMPT = json.dumps([{"role": "user", "content": "Why?"}])
LONG, MIDDLE, SHORT = "a b c d e f", "a b c d", "a b"


def pair_rows(user, group, split, condition, margins):
    return [
        {
            "split": split,
            "condition": condition,
            "pair_id": f"{user}-{i}",
            "prompt_id": f"p{i}",
            "user_id": user,
            "user_index": 1,
            "group": group,
            "margin": margin,
        }
        for i, margin in enumerate(margins)
    ]


def pairs_table(own):
    """Two users of group longer, one of shorter, one held out; `own` are margins as themselves."""
    rows = []
    generic = {"ann": [1.0, 2.0, 1.0, 3.0], "bob": [1.0, 1.0], "cas": [-1.0, -2.0, 0.0, -1.0]}
    groups = {"ann": "longer", "bob": "longer", "cas": "shorter"}
    for user, group in groups.items():
        rows += pair_rows(user, group, "test", "user", own.get(user, generic[user]))
        rows += pair_rows(user, group, "test", "generic", generic[user])
    rows += pair_rows("dee", "shorter", "unseen", "generic", [-1.0, 1.0])
    return pd.DataFrame(rows)


def generated_table(method, generic, own=None):
    """`generic`: text by prompt; `own`: text by (user, group) and prompt."""
    rows = []
    for (user, group), texts in {(None, None): generic, **(own or {})}.items():
        rows += [
            {
                "generation_id": f"{method}-{user}-{prompt_id}",
                "method": method,
                "condition": "generic" if user is None else "user",
                "user_id": user,
                "group": group,
                "prompt_id": prompt_id,
                "prompt": PROMPT,
                "text": text,
                "tokens": len(text.split()),
                "finished": prompt_id != "p1",
            }
            for prompt_id, text in texts.items()
        ]
    return pd.DataFrame(rows)


def scores_table(generated, nats):
    return pd.DataFrame(
        {
            "generation_id": generated["generation_id"],
            "nll": nats * generated["tokens"],
            "tokens": generated["tokens"],
        }
    )


def held_out_pairs():
    own = {"cas": [1.0, 2.0, 0.0, -1.0]}
    rows = []
    for user, group, n in (("ann", "longer", 4), ("bob", "longer", 2), ("cas", "shorter", 4)):
        long_first = group == "longer"
        rows += [
            {
                "pair_id": f"{user}-{i}",
                "prompt_id": f"p{i}",
                "user_id": user,
                "group": group,
                "prompt": PROMPT,
                "chosen": LONG if long_first else SHORT,
                "rejected": SHORT if long_first else LONG,
            }
            for i in range(n)
        ]
    # One label that the oracle disagrees with.
    rows[0].update(chosen=SHORT, rejected=LONG)
    return pd.DataFrame(rows), own


DEGENERATE = {"repetition": 0.3, "nll_above_base": 3.0}


def judged(judges, methods, test, unseen_users) -> Verdicts | None:
    """What the judge stage would leave behind."""
    if not judges:
        return None
    order = reading_order({name: found.generated for name, found in methods.items()})
    table = comparisons(measure_methods(methods, order, DEGENERATE, []), order, unseen_users)
    choices = judge_choices(test, judges, {}, test["pair_id"])
    return Verdicts(judge_all(table, judges).table, choices, list(judges))


def small_generated():
    """Answers of a personalised method."""
    generic = {"p0": MIDDLE, "p1": MIDDLE}
    return generated_table("pdpo", generic, {("ann", "longer"): {"p0": LONG, "p1": LONG}})


USERS = ("ann", "bob", "cas", "dee")
JUDGES = MappingProxyType({"oracle": get_oracle("length")})


def small_evaluation(judges=JUDGES, reward_models=None, baseline="dpo", **changes) -> Evaluation:
    test, own = held_out_pairs()
    base = generated_table("base", {"p0": MIDDLE, "p1": MIDDLE})
    dpo = generated_table("dpo", {"p0": LONG, "p1": ""})
    pdpo = generated_table(
        "pdpo",
        {"p0": MIDDLE, "p1": MIDDLE},
        {
            ("ann", "longer"): {"p0": LONG, "p1": LONG},
            ("bob", "longer"): {"p0": LONG + " g", "p1": "no no no " * 9},
            ("cas", "shorter"): {"p0": SHORT, "p1": SHORT},
        },
    )
    methods = {
        "base": Tables(base, scores_table(base, 1.0)),
        "dpo": Tables(dpo, scores_table(dpo, 1.25), pairs_table({})),
        "pdpo": Tables(pdpo, scores_table(pdpo, 1.5), pairs_table(own)),
        **changes,
    }
    unseen_users = pd.DataFrame({"user_id": ["dee", "eve"], "group": ["shorter", "longer"]})
    return Evaluation(
        methods,
        test,
        unseen_users,
        # A pair's number is that of its prompt, and of its dialogue.
        units=pd.Series({f"{user}-{i}": f"d{i}" for user in USERS for i in range(8)}),
        training_pairs=pd.Series([5, 5, 5]),
        verdicts=judged(judges, methods, test, unseen_users),
        intervals=Intervals(),
        margin=0.02,
        degenerate=DEGENERATE,
        baseline=baseline,
        reward_pairs=reward_models or {},
    )


def evaluation_of(result):
    """The part of evaluation.json that the summary reads."""
    methods = [{"name": name, "personalised": own} for name, own in result.personalized.items()]
    return {"methods": methods, "baseline": "dpo", "subject": "pdpo"}


def test_accuracy_by_hand():
    metrics = small_evaluation().metrics
    assert metrics["accuracy"]["dpo"] == {
        "macro": pytest.approx((1 + 1 + 0.125) / 3, abs=1e-6),
        "seen": pytest.approx((1 + 1 + 0.125) / 3, abs=1e-6),
        "micro": (4 + 2 + 0.5) / 10,
        "worst_user": 0.125,
        "generic": pytest.approx((1 + 1 + 0.125) / 3, abs=1e-6),
        "unseen": 0.5,
        "groups": {"longer": 1.0, "shorter": 0.125},
        "unseen_groups": {"shorter": 0.5},
    }
    pdpo = metrics["accuracy"]["pdpo"]
    assert pdpo["macro"] == pytest.approx((1 + 1 + 0.625) / 3, abs=1e-6)
    assert pdpo["worst_user"] == 0.625
    assert pdpo["generic"] == metrics["accuracy"]["dpo"]["macro"]
    assert metrics["accuracy_gain"] == {"pdpo_vs_dpo": pytest.approx(0.5 / 3, abs=1e-6)}
    assert "base" not in metrics["accuracy"]


def test_what_personalising_costs_unknown_users_by_hand():
    pairs = pairs_table({"cas": [1.0, 2.0, 0.0, -1.0]})
    generic = pairs["condition"] == "generic"
    # Ann loses one of four as generic user, Cas wins one; of Dee's two the tie is worth a half.
    pairs.loc[generic & (pairs["pair_id"] == "ann-0"), "margin"] = -1.0
    pairs.loc[generic & (pairs["pair_id"] == "cas-0"), "margin"] = 1.0
    pairs.loc[generic & (pairs["pair_id"] == "cas-1"), "margin"] = 1.0
    pairs.loc[generic & (pairs["pair_id"] == "dee-1"), "margin"] = 0.0
    result = small_evaluation(pdpo=Tables(small_generated(), None, pairs))
    assert result.metrics["generic_gain"] == {
        "pdpo_vs_dpo": {"unseen": -0.25, "seen": pytest.approx((-0.25 + 0 + 0.5) / 3, abs=1e-6)}
    }
    # Three users tell little of others, and a single one nothing.
    spread = result.metrics["interval"]["generic_gain"]["pdpo_vs_dpo"]
    assert set(spread) == {"seen"}
    assert spread["seen"]["low"] < -0.5
    assert result.metrics["accuracy"]["pdpo"]["unseen"] == 0.25
    assert small_evaluation().metrics["generic_gain"] == {"pdpo_vs_dpo": {"unseen": 0, "seen": 0}}


def test_costs_are_those_of_personalised_methods_on_pairs_that_both_scored():
    pairs = pairs_table({})
    kept = pairs[pairs["pair_id"] != "dee-0"]
    other = Tables(generated_table("other", {"p0": LONG, "p1": ""}), None, pairs)
    result = small_evaluation(pdpo=Tables(small_generated(), None, kept), other=other)
    assert result.metrics["generic_gain"] == {"pdpo_vs_dpo": {"unseen": 0, "seen": 0}}
    assert result.metrics["accuracy"]["pdpo"]["unseen"] == 1.0
    assert "other_vs_dpo" in result.metrics["accuracy_gain"]


def test_gains_between_personalised_methods_are_over_the_same_users():
    # Cas is told apart by one method: two of four right and one tie, against a half right.
    better = pairs_table({"cas": [1.0, 2.0, 0.0, -1.0]})
    worse = pairs_table({"cas": [1.0, 0.0, 0.0, -1.0]})
    told = generated_table("pdpo_text", {"p0": MIDDLE}, {("ann", "longer"): {"p0": LONG}})
    result = small_evaluation(
        pdpo=Tables(small_generated(), None, better), pdpo_text=Tables(told, None, worse)
    )
    gains = result.metrics["accuracy_gain"]
    assert set(gains) == {"pdpo_vs_dpo", "pdpo_text_vs_dpo", "pdpo_vs_pdpo_text"}
    assert gains["pdpo_vs_pdpo_text"] == pytest.approx((0 + 0 + 0.125) / 3, abs=1e-6)
    spread = result.metrics["interval"]["accuracy_gain"]["pdpo_vs_pdpo_text"]
    # Two users without a difference, and one with.
    assert spread["low"] < 0.0 < 0.125 < spread["high"]
    assert result.metrics["win_rate"]["pdpo_vs_pdpo_text"]["comparisons"] == 1


def test_win_rates_by_hand():
    metrics = small_evaluation().metrics
    # Against dpo: p0 LONG, p1 empty. ann: tie, win; bob: win, both bad: tie; cas: win, win.
    assert metrics["win_rate"]["pdpo_vs_dpo"] == {
        "win": pytest.approx(4 / 6, abs=1e-6),
        "loss": 0.0,
        "tie": pytest.approx(2 / 6, abs=1e-6),
        "win_rate": 1.0,
        "comparisons": 6,
        "macro": pytest.approx((0.75 + 0.75 + 1) / 3, abs=1e-6),
        "worst_user": 0.75,
        "groups": {
            "longer": {"win": 0.5, "loss": 0.0, "tie": 0.5, "win_rate": 1.0, "comparisons": 4},
            "shorter": {"win": 1.0, "loss": 0.0, "tie": 0.0, "win_rate": 1.0, "comparisons": 2},
        },
        # All answers to p1 are cut off.
        "finished": {
            "win": pytest.approx(2 / 3, abs=1e-6),
            "loss": 0.0,
            "tie": pytest.approx(1 / 3, abs=1e-6),
            "win_rate": 1.0,
            "comparisons": 3,
            "groups": {
                "longer": {"win": 0.5, "loss": 0.0, "tie": 0.5, "win_rate": 1.0, "comparisons": 2},
                "shorter": {"win": 1.0, "loss": 0.0, "tie": 0.0, "win_rate": 1.0, "comparisons": 1},
            },
        },
        # Generic MIDDLE against LONG and empty: shorter wins both, longer loses the first.
        "unseen": {"win": 0.75, "loss": 0.25, "tie": 0.0, "win_rate": 0.75, "comparisons": 4},
    }
    # Against base, MIDDLE twice: bob's loop loses though it is longer.
    base = metrics["win_rate"]["pdpo_vs_base"]
    assert base["groups"]["longer"]["win"] == 0.75
    assert base["groups"]["longer"]["loss"] == 0.25
    # The generic answers are the base model's: ties only, so no win rate.
    assert base["unseen"] == {"win": 0.0, "loss": 0.0, "tie": 1.0, "comparisons": 4}
    assert (base["macro"], base["worst_user"]) == (pytest.approx((1 + 0.5 + 1) / 3, abs=1e-6), 0.5)
    # Of three users; that of the worst is of her one win and one loss.
    spread = metrics["interval"]["win_rate"]["pdpo_vs_base"]
    assert spread["macro"]["low"] < 0.3
    assert spread["macro"]["high"] == pytest.approx(1.0, abs=1e-3)
    exact = stats.binomtest(1, 2).proportion_ci(0.95, "exact")
    assert spread["worst_user"] == pytest.approx({"low": exact.low, "high": exact.high}, abs=1e-6)


def test_a_personalised_baseline_is_always_the_other_method():
    told = generated_table(
        "told",
        {"p0": MIDDLE},
        {("ann", "longer"): {"p0": MIDDLE}, ("cas", "shorter"): {"p0": LONG}},
    )
    methods = {"told": Tables(told, None, pairs_table({"cas": [1.0, 2.0, 0.0, -1.0]}))}
    first, last = small_evaluation(**methods), small_evaluation(baseline="pdpo", **methods)
    assert list(first.personalized)[-2:] == ["pdpo", "told"]
    wins, losses = (
        result.metrics["win_rate"][pair]
        for result, pair in ((first, "pdpo_vs_told"), (last, "told_vs_pdpo"))
    )
    assert wins["win"] == losses["loss"] == 1.0
    assert wins["groups"]["shorter"]["win_rate"] == 1.0
    assert losses["groups"]["shorter"]["win_rate"] == losses["worst_user"] == 0.0
    for section in ("win_rate", "accuracy_gain"):
        assert set(last.metrics[section]) >= {"dpo_vs_pdpo", "told_vs_pdpo", "told_vs_dpo"}
        assert not any(pair.startswith("pdpo_vs_") for pair in last.metrics[section])
    assert set(tables.per_user_wins(last)["method"]) == {"base", "dpo", "told"}
    figures = headline_figures(last.metrics, list(last.personalized), "pdpo")
    assert figures["told"]["win_rate"] == 0.0
    evaluation = evaluation_of(last) | {"baseline": "pdpo", "subject": "told"}
    assert "told against P-DPO, wins: 0%" in render(last.metrics, evaluation)
    answer = headline.write(last.metrics, ["pdpo", "told"], "told", "pdpo", margin=0.02)
    assert any("wins 0% against P-DPO" in sentence for sentence in answer.sentences)


def test_every_users_comparisons_are_counted():
    table = tables.per_user_wins(small_evaluation())
    assert table[table["other"] == "dpo"].to_numpy().tolist() == [
        ["pdpo", "dpo", "ann", True, 1, 1, 0, 0.75],
        ["pdpo", "dpo", "bob", True, 1, 1, 0, 0.75],
        ["pdpo", "dpo", "cas", True, 2, 0, 0, 1.0],
        ["pdpo", "dpo", "dee", False, 2, 0, 0, 1.0],
        ["pdpo", "dpo", "eve", False, 1, 0, 1, 0.5],
    ]
    bob = table[(table["other"] == "base") & (table["user_id"] == "bob")]
    assert bob[["wins", "ties", "losses"]].to_numpy().tolist() == [[1, 0, 1]]
    without = tables.per_user_wins(small_evaluation(judges=None))
    assert without.empty
    assert list(without.columns) == list(table.columns)


def test_lengths_and_fluency_by_hand():
    metrics = small_evaluation().metrics
    assert metrics["length"]["dpo"]["groups"] == {"longer": 3.0, "shorter": 3.0}
    assert metrics["length"]["dpo"]["ratio"] == 1.0
    pdpo = metrics["length"]["pdpo"]
    longer = (6 + 6 + 7 + 27) / 4
    assert pdpo["groups"] == {"longer": longer, "shorter": 2.0}
    assert pdpo["ratio"] == pytest.approx(2 / longer, abs=1e-6)
    assert pdpo["mean"] == pytest.approx((4 * longer + 2 * 2) / 6, abs=1e-6)
    assert pdpo["generic"] == 4.0

    fluency = metrics["fluency"]
    assert fluency["dpo"]["mean_nll"] == 1.25
    assert fluency["dpo"]["base_mean_nll"] == 1.0
    assert fluency["dpo"]["empty"] == 0.5
    assert fluency["dpo"]["degenerate"] == 0.0
    assert fluency["dpo"]["unfinished"] == 0.5
    assert fluency["pdpo"]["degenerate"] == pytest.approx(1 / 6, abs=1e-6)
    assert fluency["pdpo"]["groups"]["longer"]["degenerate"] == 0.25
    assert fluency["pdpo"]["groups"]["shorter"]["degenerate"] == 0.0
    assert fluency["pdpo"]["repetition"] == pytest.approx((1 - 1 / 25) / 6, abs=1e-6)
    assert fluency["pdpo"]["generic"]["mean_nll"] == 1.5


def test_judge_agreement_and_counts():
    metrics = small_evaluation().metrics
    assert metrics["judge_agreement"]["all"] == 0.9
    assert metrics["judge_agreement"]["groups"] == {
        "longer": pytest.approx(5 / 6, abs=1e-6),
        "shorter": 1.0,
    }
    assert metrics["counts"] == {
        "users": {"seen": 3, "unseen": 2},
        "groups": {"longer": 2, "shorter": 1},
        "pairs": {"seen": 10, "unseen": 2},
        "prompts": {"judged": 4, "answered": 2},
        "units": 4,
    }


def test_every_section_of_the_metrics_is_described_in_the_docs():
    _, own = held_out_pairs()
    both = {"oracle": get_oracle("length"), "other": get_oracle("length")}
    result = small_evaluation(judges=both, reward_models={"pdpo": pairs_table(own)})
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8").replace("\\", "")
    sections = set(result.metrics) - {"interval"}
    assert {"judges", "reward_models", "generic_gain", "power"} < sections
    missing = [name for name in sections if not re.search(rf"^(## |[^#\n]*`){name}\b", text, re.M)]
    assert not missing, f"docs/metrics.md must say what these sections are: {', '.join(missing)}"


def leaves(tree, path=()) -> Iterator[tuple[tuple[str, ...], float]]:
    for name, node in tree.items():
        if isinstance(node, dict):
            yield from leaves(node, (*path, name))
        else:
            yield (*path, name), node


def test_intervals_mirror_the_figures_and_hold_them():
    metrics = small_evaluation().metrics
    figures = dict(leaves({k: v for k, v in metrics.items() if k not in ("interval", "counts")}))
    intervals = {k: v for k, v in metrics["interval"].items() if isinstance(v, dict)}
    assert metrics["interval"]["level"] == 0.95
    for (*path, end), value in leaves(intervals):
        same = tuple(path[:-1] if path[-1] == "same_users" else path)
        assert end in ("low", "high")
        figure = figures[same]
        assert value <= figure + 1e-6 if end == "low" else value >= figure - 1e-6
    # One user, or one prompt, gives no interval.
    assert "shorter" not in intervals["accuracy"]["pdpo"]["groups"]
    assert "unseen" not in intervals["accuracy"]["pdpo"]
    assert "low" in intervals["accuracy_gain"]["pdpo_vs_dpo"]["same_users"]


def test_metrics_are_finite_json_and_repeatable():
    first, second = small_evaluation().metrics, small_evaluation().metrics
    text = json.dumps(first, allow_nan=False, sort_keys=True)
    assert text == json.dumps(second, allow_nan=False, sort_keys=True)
    assert all(np.isfinite(value) for _, value in leaves(first))


def test_gains_are_those_in_macro_accuracy():
    _, own = held_out_pairs()
    units = pd.Series({f"{user}-{i}": f"d{i}" for user in USERS for i in range(4)})
    one, two = (preferences.predictions(pairs_table(table), units) for table in (own, {}))
    found = preferences.accuracy_gain(Intervals(), one, two, "test", "user")
    assert found.others.value == found.same_users.value == pytest.approx(0.5 / 3)
    assert (found.pairs, found.users) == (10, 3)
    # The very same margins are the very same model.
    same = preferences.accuracy_gain(Intervals(), two, two, "test", "user")
    assert same.others == same.same_users == (0.0, (0.0, 0.0), 0.0, None)
    # Equally many right are not.
    other = preferences.predictions(pairs_table({"ann": [2.0, 2.0, 1.0, 3.0]}), units)
    assert (
        preferences.accuracy_gain(Intervals(), other, two, "test", "user").others.interval.high
        > 0.1
    )
    assert preferences.accuracy_gain(Intervals(), one.head(0), two, "test", "user") is None


def many_users(count, seed=0):
    """Scored pairs of two methods: the second is wrong about every tenth user, the first never."""
    rng = np.random.default_rng(seed)
    rows = {"one": [], "two": []}
    for i in range(count):
        for split, pairs in (("test", 20), ("validation", 10)):
            for name, skill in (("one", 0.8), ("two", 0.2 if i % 10 == 0 else 0.8)):
                margins = np.where(rng.random(pairs) < skill, 1.0, -1.0)
                rows[name] += pair_rows(f"u{i:03}", "g", split, "user", margins)
    tables = {name: pd.DataFrame(table) for name, table in rows.items()}
    for table in tables.values():
        table["pair_id"] = table["split"] + table["pair_id"]
    return tables


def evaluation_of_many(tables):
    ids = tables["one"]["pair_id"].unique()
    answers = {
        "one": generated_table("one", {"p0": LONG}, {("u000", "g"): {"p0": LONG}}),
        "two": generated_table("two", {"p0": LONG}),
    }
    return Evaluation(
        {name: Tables(answers[name], None, table) for name, table in tables.items()},
        tables["one"][tables["one"]["split"] == "test"],
        pd.DataFrame({"user_id": [], "group": []}),
        units=pd.Series(ids, index=ids),
        training_pairs=pd.Series([1000] + [10] * 99),
        verdicts=None,
        intervals=Intervals(),
        margin=0.02,
        degenerate=DEGENERATE,
        baseline="two",
    )


def test_pairs_of_validation_are_in_no_figure_but_their_own():
    tables_ = many_users(12)
    whole = evaluation_of_many(tables_).metrics
    test = {name: table[table["split"] == "test"] for name, table in tables_.items()}
    without = evaluation_of_many(test).metrics
    own = tables_["two"][tables_["two"]["split"] == "validation"]
    assert whole["accuracy"]["two"].pop("validation") == pytest.approx(
        (own["margin"] > 0).mean(), abs=1e-6
    )
    assert "validation" not in without["accuracy"]["two"]
    assert whole["accuracy"]["two"] == without["accuracy"]["two"]
    assert whole["accuracy_gain"] == without["accuracy_gain"]
    # Whom the baseline serves worst is known from validation alone.
    assert set(whole["worst_tenth_gain"]) == {"one_vs_two"}
    assert "worst_tenth_gain" not in without
    table = tables.per_user(evaluation_of_many(tables_)).set_index("user_id")
    first = own[own["user_id"] == "u000"]["margin"] > 0
    assert table.loc["u000", "validation_two"] == first.mean()
    assert table.loc["u000", ["pairs", "pairs_validation"]].tolist() == [20, 10]


def test_the_worst_tenth_gains_what_it_gains_and_not_by_luck():
    gains, lucky = [], []
    for seed in range(8):
        found = evaluation_of_many(many_users(40, seed)).metrics
        gains.append(found["worst_tenth_gain"]["one_vs_two"])
        # Two methods that are equally good for all.
        same = many_users(40, 100 + seed)
        twin = many_users(40, 200 + seed)["one"]
        lucky.append(
            evaluation_of_many({"one": same["one"], "two": twin}).metrics["worst_tenth_gain"][
                "one_vs_two"
            ]
        )
    assert np.mean(gains) == pytest.approx(0.6, abs=0.07)
    assert np.mean(lucky) == pytest.approx(0.0, abs=0.06)


def test_what_the_data_could_have_shown():
    tables_ = many_users(30)
    result = evaluation_of_many(tables_)
    power = result.metrics["power"]["one_vs_two"]
    one, two = (result.predictions[name] for name in ("one", "two"))
    gain = preferences.accuracy_gain(Intervals(), one, two, "test", "user")
    assert power["detectable"] == pytest.approx(gain.others.detectable(0.95), abs=1e-6)
    assert power["detectable"] > power["detectable_same_users"] > 0
    size = abs(gain.others.value)
    assert power["pairs"] == np.ceil(600 * (gain.same_users.detectable(0.95) / size) ** 2)
    assert power["users"] == max(8, np.ceil(30 * (gain.others.detectable(0.95) / size) ** 2))


def test_that_training_weighs_choices_is_said_where_they_are_uneven():
    uneven = evaluation_of_many(many_users(12))
    assert any("A tenth of the users made 55% of the training" in note for note in uneven.notes)
    assert not any("training choices" in note for note in small_evaluation().notes)


def test_without_judge_or_base_the_rest_is_computed_and_a_note_says_so():
    result = small_evaluation(judges=None, base=Tables())
    assert "win_rate" not in result.metrics
    assert "judge_agreement" not in result.metrics
    assert "base_mean_nll" not in result.metrics["fluency"]["pdpo"]
    assert result.metrics["accuracy"]["pdpo"]["worst_user"] == 0.625
    notes = " ".join(result.notes)
    assert "win rates are left out" in notes
    assert "no scored texts of the base model" in notes


def test_nothing_scored_leaves_everything_out():
    result = small_evaluation(pdpo=Tables(), dpo=Tables(), base=Tables())
    assert set(result.metrics) == {"counts", "interval", "judge_agreement"}
    assert tables.per_user(result).empty
    assert tables.lengths(result, 0).empty
    assert tables.samples(result, prompts=2, users=2, seed=0) == {"users": [], "prompts": []}
    assert "accuracy" in render(result.metrics, evaluation_of(result))


def test_diverged_model_counts_as_wrong():
    broken = pairs_table({"cas": [np.nan, np.inf, -np.inf, np.nan]})
    result = small_evaluation(pdpo=Tables(pairs=broken))
    assert result.metrics["accuracy"]["pdpo"]["groups"]["shorter"] == 0.25
    assert any("4 of 22 margins are not finite" in note for note in result.notes)


def orders(methods):
    """The reading order of methods, by whether they are personalised; None has no texts."""
    conditions = {True: ["generic", "user"], False: ["generic"]}
    return reading_order(
        {
            name: None if own is None else pd.DataFrame({"condition": conditions[own]})
            for name, own in methods.items()
        }
    )


def test_methods_keep_their_order_but_for_trained_personalised_ones_which_come_last():
    names = {"pdpo": True, "base": False, "prompted": True, "rival": None, "zeta": True}
    assert list(orders(names | {"dpo": False}).items()) == [
        ("base", False),
        ("prompted", True),
        ("rival", False),
        ("dpo", False),
        ("pdpo", True),
        ("zeta", True),
    ]
    assert list(orders({"base": False, "dpo": False, "pdpo": True})) == ["base", "dpo", "pdpo"]


def test_unseen_users_get_answers_of_their_own_where_there_are_any():
    about = {"prompt_id": "p", "prompt": PROMPT, "state": "healthy", "finished": True}
    generic = about | {"condition": "generic", "user_id": None, "group": None, "text": "g"}
    own = about | {"condition": "unseen", "user_id": "zoe", "group": "shorter", "text": "z"}
    left_out = own | {"user_id": "uma", "text": "u"}
    base = pd.DataFrame([generic | {"text": "b"}])
    users = pd.DataFrame({"user_id": ["zoe", "kai"], "group": ["shorter", "longer"]})

    def served(*rows):
        table = comparisons(
            {"mine": pd.DataFrame(rows), "base": base}, {"mine": True, "base": False}, users
        )
        assert not table["seen"].any()
        return table[["user_id", "group", "first", "second"]].to_numpy().tolist()

    assert served(generic, own, left_out) == [["zoe", "shorter", "z", "b"]]
    assert served(generic) == [["zoe", "shorter", "g", "b"], ["kai", "longer", "g", "b"]]


def test_what_rounding_decides_is_a_tie():
    rounding = pairs_table({"cas": [9e-4, -9e-4, 2e-5, -1e-6]})
    metrics = small_evaluation(pdpo=Tables(pairs=rounding)).metrics
    assert metrics["accuracy"]["pdpo"]["groups"]["shorter"] == 0.5
    beyond = pairs_table({"cas": [2e-3, -2e-3, 2e-3, 2e-3]})
    metrics = small_evaluation(pdpo=Tables(pairs=beyond)).metrics
    assert metrics["accuracy"]["pdpo"]["groups"]["shorter"] == 0.75


MARGINS = st.lists(st.sampled_from([-1.5, 0.0, 0.5, float("nan")]), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from("abcde"), MARGINS, min_size=1))
def test_per_user_accuracy_equals_a_loop(margins):
    rows = [row for user, m in margins.items() for row in pair_rows(user, "g", "test", "user", m)]
    scored = preferences.predictions(pd.DataFrame(rows), pd.Series(dtype=str))
    table = preferences.accuracy_by_user(scored).set_index("user_id")
    for user, values in margins.items():
        worth = [1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in values]
        assert table.loc[user, "accuracy"] == pytest.approx(sum(worth) / len(worth))
        assert table.loc[user, ["wins", "ties", "losses"]].sum() == table.loc[user, "pairs"]


def test_per_user_table():
    table = tables.per_user(small_evaluation())
    assert list(table.columns) == [
        "user_id", "group", "seen", "pairs",
        "accuracy_dpo", "accuracy_dpo_generic", "accuracy_pdpo", "accuracy_pdpo_generic",
    ]  # fmt: skip
    assert list(table["user_id"]) == ["ann", "bob", "cas", "dee"]
    cas = table.set_index("user_id").loc["cas"]
    assert (cas["accuracy_pdpo"], cas["accuracy_pdpo_generic"]) == (0.625, 0.125)
    assert np.isnan(table.set_index("user_id").loc["dee", "accuracy_pdpo_generic"])


def test_plot_tables():
    result = small_evaluation()
    users = tables.user_accuracy(result, 0)
    assert len(users) == 8
    assert list(users.columns) == ["user_id", "group", "seen", "method", "accuracy", "pairs"]
    lengths = tables.lengths(result, 0)
    counts = lengths.groupby(["method", "group"]).size()
    assert counts["dpo", "longer"] == counts["dpo", "shorter"] == 2
    assert counts["pdpo", "longer"] == 4
    maps = tables.embeddings(
        {
            "pdpo": pd.DataFrame(
                {"user_id": ["a", None], "group": ["g", None], "x": [0.0, 1.0], "y": [0.0, 1.0]}
            )
        },
        0,
    )
    assert list(maps["method"]) == ["pdpo", "pdpo"]
    assert maps["user_id"].isna().tolist() == [False, True]


def test_plot_tables_of_many_users_are_samples(monkeypatch):
    monkeypatch.setattr(tables, "MAX_POINTS", 2)
    result = small_evaluation()
    users = tables.user_accuracy(result, 0)
    assert users["user_id"].nunique() == 2
    assert len(users) == 4
    assert tables.user_accuracy(result, 0).equals(users)
    assert tables.lengths(result, 0).groupby(["method", "group"]).size().max() == 2


def test_samples_show_the_same_prompt_to_users_of_each_group():
    samples = tables.samples(small_evaluation(), prompts=1, users=2, seed=0)
    assert [user["group"] for user in samples["users"]] == ["longer", "shorter"]
    (prompt,) = samples["prompts"]
    assert prompt["messages"] == [{"role": "user", "content": "Why?"}]
    methods = [(answer["method"], answer["group"]) for answer in prompt["answers"]]
    assert methods == [("base", None), ("dpo", None), ("pdpo", "longer"), ("pdpo", "shorter")]
    assert prompt["answers"][-1]["text"] == SHORT
    json.dumps(samples, allow_nan=False)


def test_summary_fits_a_terminal():
    result = small_evaluation()
    text = render(result.metrics, evaluation_of(result))
    assert max(map(len, text.splitlines())) <= 100
    header = text.splitlines()[1].split()
    assert header[:3] == ["mean", "worst", "user"]
    assert "P-DPO against DPO, wins: 100% (ties 33%)" in text
    assert "P-DPO over DPO: +17 points" in text


def test_a_summary_of_many_methods_compares_what_matters():
    names = ["dpo_text", "pdpo", "pdpo_text", "prompted"]
    pairs = [f"{one}_vs_{other}" for one in names for other in ("base", "dpo")]
    pairs += ["pdpo_vs_dpo_text", "pdpo_vs_prompted", "dpo_text_vs_prompted"]
    metrics = {"win_rate": {pair: {"win_rate": 0.75, "tie": 0.5} for pair in pairs}}
    about = {"methods": [], "baseline": "dpo", "subject": "pdpo"}
    lines = [line for line in render(metrics, about).splitlines() if "wins:" in line]
    assert [line.partition(",")[0] for line in lines] == [
        "DPO + text against DPO",
        "P-DPO + text against DPO",
        "P-DPO against Base model",
        "P-DPO against DPO",
        "P-DPO against DPO + text",
        "P-DPO against Prompted base",
        "Prompted base against DPO",
    ]
    few = {"win_rate": {pair: metrics["win_rate"][pair] for pair in pairs[:6]}}
    assert render(few, about).count("wins:") == 6

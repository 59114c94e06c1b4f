"""Trained reward models as judges: what they learn from, are asked about, and may decide."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from prlhf import cli
from prlhf.data.reference import text_key
from prlhf.infra.errors import UserError
from prlhf.infra.io import write_json, write_parquet
from prlhf.judging.comparisons import texts_to_reward
from prlhf.judging.reward import RewardModelJudge
from prlhf.params import CompareParams, load
from prlhf.params.loading import overridden
from prlhf.rewards.training import divide
from prlhf.stages import evaluate, judge
from synthetic_run import write_run

ROOT = Path(__file__).resolve().parents[2]
COMPARE = CompareParams(trained=["dpo", "pdpo"], all=["base", "dpo", "pdpo"])
HELD_OUT = {
    "reward_models": ["pdpo"],
    "train_reward_model.pairs": "held_out",
    "judge.reward_model.method": "pdpo",
}


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def set_params(changes) -> None:
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text(), encoding="utf-8")
    Path("params.yaml").write_text(overridden(Path("params.yaml"), changes), encoding="utf-8")


# -- what a reward model learns from --------------------------------------------------------------


def prepared(**rows: list[tuple[str, str]]) -> dict[str, pd.DataFrame]:
    """Tables of (user, pair id); those of `unseen` name the side of their prompt first."""
    index = {"ann": 1, "bob": 2, "cas": 3}
    tables = {}
    for split in ("train", "validation", "test"):
        users, pairs = zip(*rows[split], strict=True)
        table = pd.DataFrame({"user_id": users, "pair_id": pairs})
        tables[split] = table.assign(user_index=table["user_id"].map(index))
    users, pairs = zip(*rows["unseen"], strict=True)
    table = pd.DataFrame({"user_id": users, "pair_id": pairs, "user_index": 0})
    tables["unseen"] = table.assign(prompt_split=table["pair_id"].str.partition("-")[0])
    return tables


def some_tables() -> dict[str, pd.DataFrame]:
    return prepared(
        train=[("ann", "t1"), ("bob", "t2"), ("cas", "t3")],
        validation=[("ann", "v1"), ("cas", "v2")],
        test=[("ann", "x1"), ("bob", "x2"), ("cas", "x3")],
        unseen=[("ada", "train-1"), ("ada", "test-1"), ("zed", "test-2"), ("ada", "validation-1")],
    )


def pairs_of(table: pd.DataFrame) -> list[tuple[str, int]]:
    return list(zip(table["pair_id"], table["user_index"], strict=True))


def test_a_reward_model_learns_what_the_methods_learn():
    found = divide(some_tables(), "train")
    assert pairs_of(found.learned) == [("t1", 1), ("t2", 2), ("t3", 3)]
    assert pairs_of(found.watched) == [("v1", 1), ("v2", 3)]
    assert found.users is None


def test_a_reward_model_that_is_to_judge_learns_what_no_method_learns():
    found = divide(some_tables(), "held_out")
    assert found.users == ["ada", "ann", "cas"]
    assert pairs_of(found.learned) == [("v1", 2), ("v2", 3), ("train-1", 1), ("validation-1", 1)]
    # Bob has no validation pair, and Zed is asked about test prompts only.
    assert pairs_of(found.watched) == [("t1", 2), ("t2", 0), ("t3", 3)]


def test_without_held_out_pairs_nothing_is_learned():
    tables = some_tables()
    tables |= {name: tables[name].iloc[:0] for name in ("validation", "unseen")}
    with pytest.raises(UserError, match=r"train_reward_model.pairs: no user has held-out pairs"):
        divide(tables, "held_out")
    assert pairs_of(divide(tables, "train").learned) == pairs_of(tables["train"])


# -- what it is asked about -----------------------------------------------------------------------


def generated(method: str, rows: list[tuple[str, str | None, str, str]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["condition", "user_id", "prompt_id", "text"])
    prompt = table["prompt_id"] + "?"
    return table.assign(method=method, group=None, prompt=prompt, finished=True)


def test_a_user_is_asked_about_both_answers_of_each_comparison_and_both_of_each_pair():
    methods = {
        "dpo": generated("dpo", [("generic", None, "p", "all"), ("generic", None, "q", "")]),
        "pdpo": generated(
            "pdpo",
            [
                ("generic", None, "p", "some"),
                ("user", "ann", "p", "ann's"),
                ("user", "bob", "p", "all"),
            ],
        ),
    }
    unseen = pd.DataFrame({"user_id": ["zed"], "group": [None]})
    test = pd.DataFrame({"user_id": ["ann"], "prompt": ["p?"], "chosen": ["all"], "rejected": "no"})
    found = texts_to_reward(methods, unseen, test)
    assert list(found.columns) == ["user_id", "prompt", "text"]
    assert set(found["prompt"]) == {"p?"}
    assert sorted(zip(found["user_id"], found["text"], strict=True)) == [
        ("ann", "all"),
        ("ann", "ann's"),
        ("ann", "no"),
        ("bob", "all"),
        ("zed", "all"),
        ("zed", "some"),
    ]


# -- as a judge -----------------------------------------------------------------------------------


def write_rewards(root: Path, *, learned_from: str = "held_out", unknown: str = "nobody") -> None:
    """A reward model of all users but `unknown`, whom their number of words pleases or not."""
    tables = {
        name: pd.read_parquet(root / f"data/generated/{name}.parquet") for name in COMPARE.all
    }
    users = pd.read_parquet(root / "data/prepared/users.parquet")
    test = pd.read_parquet(root / "data/prepared/test.parquet")
    asked = texts_to_reward(tables, users[~users["seen"]], test)
    asked = asked[asked["user_id"] != unknown]
    size = asked["text"].str.split().str.len()
    sign = asked["user_id"].str.contains("longer").map({True: 1.0, False: -1.0})
    folder = root / "data/scores/reward_pdpo"
    keys = list(map(text_key, asked["prompt"], asked["text"]))
    rewards = pd.DataFrame({"user_id": asked["user_id"], "text": keys, "reward": sign * size})
    write_parquet(folder / "rewards.parquet", rewards)
    write_json(folder / "about.json", {"learned_from": learned_from, "model": "pdpo", "users": 14})


def test_a_trained_reward_model_judges_beside_the_oracle(work):
    write_run(work)
    write_rewards(work, unknown="longer-03")
    set_params({**HELD_OUT, "judge.kind": "reward_model", "judge.also": ["oracle"]})
    params = load()
    judge.run(seed=7, compared=COMPARE.all, judge=params.judge)
    found = pd.read_parquet("data/judged/verdicts.parquet")
    about = json.loads(Path("data/judged/judge.json").read_text(encoding="utf-8"))
    assert about["details"]["reward_model"]["learned_from"] == "held_out"
    assert about["comparisons"]["user_not_known"] == 30 * 2
    assert "longer-03" not in set(found["user_id"])
    assert found["user_id"].nunique() == 13
    asked = found[found["asked"]]
    assert (asked["verdict"] == asked["verdict_oracle"]).all()
    assert ((asked["probability_trained"] > 0.5) == (asked["verdict"] == 1)).all()
    evaluation = params.evaluate
    evaluate.run(seed=7, compare=COMPARE, reward_models=[], evaluate=evaluation)
    metrics = json.loads(Path("reports/metrics.json").read_text(encoding="utf-8"))
    assert metrics["judge_agreement"]["all"] == 1.0
    assert metrics["judges"]["reward_model_vs_oracle"]["agreement"] == 1.0
    words = json.loads(Path("reports/evaluation.json").read_text(encoding="utf-8"))["judge"][
        "description"
    ]
    assert "which the judged models were not trained on" in words


def test_what_it_learned_from_is_said(work):
    write_run(work, prompts=3, pairs_per_user=2)
    write_rewards(work, learned_from="train")
    found = RewardModelJudge.read(work / "data/scores/reward_pdpo", tie=0)
    assert "may share their mistakes" in found.description


def test_rewards_of_other_answers_are_refused(work, capsys):
    write_run(work, prompts=3, pairs_per_user=2)
    write_rewards(work)
    set_params({**HELD_OUT, "judge.kind": "reward_model"})
    table = pd.read_parquet("data/generated/pdpo.parquet")
    table.loc[table["condition"] == "user", "text"] += " and more"
    write_parquet(Path("data/generated/pdpo.parquet"), table)
    assert cli.execute(["judge"]) == 2
    [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert line == (
        "error: data/scores/reward_pdpo/rewards.parquet: is not about the answers there are now "
        "(`dvc repro` makes it anew)"
    )
    assert not Path("data/judged").exists()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            {"judge.kind": "reward_model", "judge.reward_model.method": None},
            "judge.reward_model.method: must name one of reward_models when the judge is "
            "reward_model",
        ),
        (
            {"judge.kind": "reward_model", "reward_models": ["dpo"]},
            "judge.reward_model.method: names pdpo, but reward_models has [dpo]",
        ),
        (
            {
                "judge.kind": "reward_model",
                "reward_models": ["dpo"],
                "judge.reward_model.method": "dpo",
            },
            "judge.reward_model.method: names dpo, which knows no user from another "
            "(methods.dpo.kind is uniform)",
        ),
        (
            {"judge.kind": "reward_model", "train_reward_model.pairs": "train"},
            "judge.kind: must not be a reward model that learned from the judged models' own "
            "training pairs, because it would share their mistakes: set train_reward_model.pairs "
            "to held_out, or name it in judge.also, beside another judge",
        ),
    ],
)
def test_a_reward_model_that_may_not_judge(work, changes, fault):
    with pytest.raises(UserError) as caught:
        set_params(HELD_OUT | changes)
    assert str(caught.value) == fault


def test_beside_another_judge_it_may_have_learned_what_the_methods_did(work):
    beside = {"judge.also": ["reward_model"], "train_reward_model.pairs": "train"}
    set_params(HELD_OUT | beside)
    assert load().judge.also == ["reward_model"]

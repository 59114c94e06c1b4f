"""A reward model in `dvc repro`: asked for in params.yaml, and judging from its directory."""

from __future__ import annotations

import pytest
from e2e_project import Project

pytestmark = pytest.mark.e2e

JUDGE = """
from prlhf.rewards.lm import PersonalizedRewardModel

model = PersonalizedRewardModel.from_pretrained("models/reward_pdpo")
user = model.user_model.users[0]
print(*model.reward(["a?", "a?"], ["ash", "bay cob"], [user, None]))
"""


PRETRAINED = """
from prlhf.rewards.lm import FeatureRewardModel

model = FeatureRewardModel.from_pretrained("models/user_model/reward_model")
print(*model.reward(["a?"] * 3, ["ash"] * 3, [*model.users[:2], None]))
"""


def test_the_reward_model_of_pretraining_can_be_asked(finished: Project):
    rewards = finished.run("python", "-c", PRETRAINED).out.split()
    assert len({float(reward) for reward in rewards}) == 3
    card = finished.json("models/user_model/reward_model/reward_model.json")
    assert card["gain"] == finished.json("reports/pretrain.json")["gain"]
    assert card["tokens"] == {"max_prompt": 64, "max_response": 48}


def test_a_reward_model_is_trained_when_it_is_asked_for(project: Project):
    before = project.digests("models/pdpo", "reports/metrics.json")
    project.set({"reward_models": ["pdpo"], "optimizer.max_steps": 6})
    result = project.run("dvc", "repro", "train_reward_model")
    assert result.ran == ["train_reward_model@pdpo"]
    card = project.json("models/reward_pdpo/user_model.json")
    assert card["user_model"]["kind"] == "cluster"
    assert card["learned_from"] == "train"
    curves = (project / "reports/reward_models/pdpo.csv").read_text().splitlines()
    assert curves[0].startswith("step,epoch,split,loss,")
    assert not list((project / ".cache/checkpoints").glob("reward_pdpo-*"))
    assert project.digests("models/pdpo", "reports/metrics.json") == before
    rewards = project.run("python", "-c", JUDGE).out.split()
    assert len({float(reward) for reward in rewards}) == 2
    assert project.run("dvc", "repro", "train_reward_model").ran == []


def test_a_reward_model_judges_what_it_never_learned_from(project: Project):
    project.set(
        {
            "reward_models": ["pdpo"],
            "train_reward_model.pairs": "held_out",
            # The tiny model's answers are noise; they are not to lose before the judge is asked.
            "judge.degenerate_repetition": 1.0,
            "judge.degenerate_nll": 100.0,
            "judge.kind": "reward_model",
            "judge.also": ["oracle"],
            "judge.reward_model.method": "pdpo",
        }
    )
    result = project.run("dvc", "repro")
    assert result.ran == [
        *("train_reward_model@pdpo", "score_rewards@pdpo", "judge", "evaluate", "report")
    ]
    details = project.json("data/judged/judge.json")["details"]["reward_model"]
    card = project.json("models/reward_pdpo/user_model.json")
    assert details["learned_from"] == card["learned_from"] == "held_out"
    assert details["users"] == len(card["users"])
    assert set(card["users"]) - set(project.json("models/pdpo/user_model.json")["users"])
    metrics = project.json("reports/metrics.json")
    assert {"macro", "generic", "unseen", "worst_user"} <= set(metrics["reward_models"]["pdpo"])
    assert metrics["judges"]["reward_model_vs_oracle"]["comparisons"] > 20
    assert metrics["win_rate"]["pdpo_vs_dpo"]["unseen"]["comparisons"] > 0
    assert "on the language model itself" in (project / "reports/report.html").read_text()
    # It learned little. Without ties it decides more, on the same rewards.
    project.set({"judge.reward_model.tie": 0.0})
    assert project.run("dvc", "repro").ran == ["judge", "evaluate", "report"]


def test_an_unknown_method(project: Project):
    result = project.run("prlhf", "train-reward-model", "--method", "nobody", status=2)
    assert "train-reward-model --method: unknown method nobody" in result.errors[0]

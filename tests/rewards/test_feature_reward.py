"""The reward model of pretraining in its directory: it says what it was fitted to say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from prlhf.data.prompts import canonical_prompt
from prlhf.infra.errors import UserError
from prlhf.models.base import Encoder, load_base
from prlhf.models.packing import Row
from prlhf.models.personalized import PersonalizedLM
from prlhf.reference import reference_pass
from prlhf.rewards.features import CARD, WEIGHTS, FeatureReward, save_feature_reward
from prlhf.rewards.lm import FeatureRewardModel

USERS = ["ann", "bob", "cyd"]
DIRECTORY = Path("models/user_model/reward_model")


@pytest.fixture
def fitted(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureReward:
    """A reward model in a directory beside `models/base`, which it points to."""
    shutil.copytree(tiny_path, tmp_path / "models" / "base")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRLHF_DEVICE", "cpu")
    generator = torch.Generator().manual_seed(0)
    sizes = {"projection": (32, 5), "directions": (2, 5), "weights": (4, 2)}
    tensors = {name: torch.randn(*size, generator=generator) for name, size in sizes.items()}
    fitted = FeatureReward(**tensors)
    DIRECTORY.mkdir(parents=True)
    save_feature_reward(
        fitted,
        DIRECTORY,
        users=USERS,
        base=Path("models/base"),
        source={"name": "tiny"},
        max_prompt=24,
        max_response=8,
        about={"learned_from": "train"},
    )
    return fitted


def test_differences_are_those_of_the_reference_pass(fitted: FeatureReward, tmp_path: Path) -> None:
    """What is asked in words is what was fitted on stored features, cut texts included."""
    asked = [
        ("ann", "Why?", "because", "a much too long answer"),
        ("bob", "Why?", "because", "no"),
        ("cyd", "How, if it is not too much to ask, would you do it?", "so", "so so"),
    ]
    table = pd.DataFrame(asked, columns=["user_id", "prompt", "chosen", "rejected"])
    table["prompt"] = table["prompt"].map(canonical_prompt)
    table["user_text"] = None
    base = load_base(Path("models/base"), "float32")
    lm = PersonalizedLM.reference(base, Encoder(base.tokenizer, 24, 8))
    reference = reference_pass(lm, [table], None, parts=tmp_path / "parts")
    expected = fitted(reference.differences(table), torch.tensor([1, 2, 3]))

    model = FeatureRewardModel.from_pretrained(DIRECTORY)
    users, prompts, chosen, rejected = (list(column) for column in zip(*asked, strict=True))
    better, worse = (model.reward(prompts, side, users) for side in (chosen, rejected))
    got = torch.tensor(better) - torch.tensor(worse)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert len({round(value, 3) for value in got.tolist()}) == 3


def test_unknown_users_are_the_generic_one(fitted: FeatureReward) -> None:
    model = FeatureRewardModel.from_pretrained(DIRECTORY)
    rewards = model.reward(["Why?"] * 5, ["because"] * 5, ["ann", "bob", "cyd", "zoe", None])
    # Equal but for rounding: the place in a batch decides in which order numbers are added up.
    assert rewards[3] == pytest.approx(rewards[4], rel=1e-5)
    assert len({round(reward, 3) for reward in rewards}) == 4
    features = model.lm.score(
        [row_of(model, "Why?", "because")], label="test", features=True
    ).features
    for reward, weights in zip(rewards[:3], fitted.weights[1:], strict=True):
        mixture = torch.softmax(weights, 0)
        expected = (features[0] @ fitted.projection) @ (mixture @ fitted.directions)
        assert reward == pytest.approx(float(expected), rel=1e-4, abs=1e-5)


def row_of(model: FeatureRewardModel, prompt: str, response: str) -> Row:
    encoder = model.lm.encoder
    return Row(0, encoder.prompt(canonical_prompt(prompt)), [encoder.response(response)])


def test_rewards_come_in_the_order_of_the_questions(fitted: FeatureReward) -> None:
    model = FeatureRewardModel.from_pretrained(DIRECTORY)
    prompts = ["Why?", "How?", [{"role": "user", "content": "Why?"}], "Why?"]
    responses, users = ["because", "so", "no", "because"], ["ann", "bob", "ann", "bob"]
    together = model.reward(prompts, responses, users)
    alone = [
        model.reward([prompt], [response], [user])[0]
        for prompt, response, user in zip(prompts, responses, users, strict=True)
    ]
    assert together == pytest.approx(alone, rel=1e-4, abs=1e-4)
    assert model.reward([], [], []) == []


def test_errors_name_what_is_wrong(fitted: FeatureReward, tmp_path: Path) -> None:
    model = FeatureRewardModel.from_pretrained(DIRECTORY)
    with pytest.raises(UserError, match="2 prompts, 1 responses and 2 users"):
        model.reward(["a", "b"], ["c"], ["ann", "bob"])
    with pytest.raises(UserError, match=r"holds no reward model .*pretrain.method: reward"):
        FeatureRewardModel.from_pretrained(tmp_path)
    card = json.loads((DIRECTORY / CARD).read_text())
    assert card["learned_from"] == "train"
    (DIRECTORY / CARD).write_text(json.dumps(card | {"format": 2}))
    with pytest.raises(UserError, match="was written by a newer prlhf"):
        FeatureRewardModel.from_pretrained(DIRECTORY)
    (DIRECTORY / CARD).write_text(json.dumps(card))
    (DIRECTORY / WEIGHTS).write_bytes(b"x")
    with pytest.raises(UserError, match=r"reward_model.safetensors: is missing or damaged"):
        FeatureRewardModel.from_pretrained(DIRECTORY)

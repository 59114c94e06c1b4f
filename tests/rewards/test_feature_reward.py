"""The reward model of pretraining in its directory: it says what it was fitted to say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from prlhf.data.prompts import canonical_prompt
from prlhf.data.reference import load_reference
from prlhf.infra.errors import UserError
from prlhf.models.base import Encoder, load_base
from prlhf.models.packing import Row
from prlhf.models.personalized import PersonalizedLM
from prlhf.people.files import CARD, WEIGHTS, save_reward
from prlhf.people.hierarchical import HierarchicalReward
from prlhf.reference import reference_pass
from prlhf.rewards.lm import FeatureRewardModel

USERS = ["ann", "bob", "cyd"]
DIRECTORY = Path("models/user_model/reward_model")


@pytest.fixture
def fitted(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HierarchicalReward:
    """A reward model in a directory beside `models/base`, which it points to."""
    shutil.copytree(tiny_path, tmp_path / "models" / "base")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRLHF_DEVICE", "cpu")
    generator = torch.Generator().manual_seed(0)
    sizes = {
        "shared": (32,),
        "basis": (32, 3),
        "means": (4, 3),
        "covariances": (4, 3, 3),
        "centres": (2, 3),
        "weights": (4, 2),
    }
    tensors = {name: torch.randn(*size, generator=generator) for name, size in sizes.items()}
    fitted = HierarchicalReward(**tensors)
    DIRECTORY.mkdir(parents=True)
    save_reward(
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


def test_differences_are_those_of_the_reference_pass(
    fitted: HierarchicalReward, tmp_path: Path
) -> None:
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
    lm = PersonalizedLM.reference(base, Encoder(base.chat, 24, 8))
    (tmp_path / "reference").mkdir()
    reference_pass(lm, [table], directory=tmp_path / "reference")
    reference = load_reference(tmp_path / "reference")
    first, second = (reference.features[rows] for rows in reference.rows_of(table))
    expected = fitted(first.float() - second.float(), torch.tensor([1, 2, 3]))

    model = FeatureRewardModel.from_pretrained(DIRECTORY)
    users, prompts, chosen, rejected = (list(column) for column in zip(*asked, strict=True))
    better, worse = (model.reward(prompts, side, users) for side in (chosen, rejected))
    got = torch.tensor(better) - torch.tensor(worse)
    # Stored features are in half precision.
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2)
    assert len({round(value, 3) for value in got.tolist()}) == 3


def test_users_go_by_their_own_ids(fitted: HierarchicalReward) -> None:
    model = FeatureRewardModel.from_pretrained(DIRECTORY)
    rewards = model.reward(["Why?"] * 4, ["because"] * 4, ["ann", "bob\n", "cyd", None])
    assert len({round(reward, 3) for reward in rewards}) == 4
    with pytest.raises(UserError, match="not among the 3 users that the model knows: 'zoe'"):
        model.reward(["Why?"], ["because"], ["zoe"])
    features = model.lm.score(
        [row_of(model, "Why?", "because")], label="test", features=True
    ).features
    for reward, mean in zip(rewards[:3], fitted.means[1:], strict=True):
        expected = features[0].float() @ (fitted.shared + fitted.basis @ mean)
        assert reward == pytest.approx(float(expected), rel=1e-4, abs=1e-5)


def row_of(model: FeatureRewardModel, prompt: str, response: str) -> Row:
    encoder = model.lm.encoder
    return Row(0, encoder.prompt(canonical_prompt(prompt)), [encoder.response(response)])


def test_rewards_come_in_the_order_of_the_questions(fitted: HierarchicalReward) -> None:
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


def test_errors_name_what_is_wrong(fitted: HierarchicalReward, tmp_path: Path) -> None:
    model = FeatureRewardModel.from_pretrained(DIRECTORY)
    with pytest.raises(UserError, match="2 prompts, 1 responses and 2 users"):
        model.reward(["a", "b"], ["c"], ["ann", "bob"])
    with pytest.raises(UserError, match=r"holds no reward model .*pretrain.method: reward"):
        FeatureRewardModel.from_pretrained(tmp_path)
    card = json.loads((DIRECTORY / CARD).read_text())
    assert card["learned_from"] == "train"
    for version, message in ((3, "a newer prlhf"), (1, r"an older prlhf.* pretrain_user_model")):
        (DIRECTORY / CARD).write_text(json.dumps(card | {"format": version}))
        with pytest.raises(UserError, match=f"was written by {message}"):
            FeatureRewardModel.from_pretrained(DIRECTORY)
    (DIRECTORY / CARD).write_text(json.dumps(card))
    (DIRECTORY / WEIGHTS).write_bytes(b"x")
    with pytest.raises(UserError, match=r"reward_model.safetensors: is missing or damaged"):
        FeatureRewardModel.from_pretrained(DIRECTORY)

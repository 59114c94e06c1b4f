"""A reward model's directory, and its answers to the caller's own users."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from personal import personalise
from prlhf.infra.errors import UserError
from prlhf.models.base import BaseModel, load_base
from prlhf.models.packing import Row
from prlhf.models.personalized import PersonalizedLM
from prlhf.rewards.lm import HEAD, PersonalizedRewardModel

PROMPTS = ["Why?", "How?", "Why?", "Why?", "Why?"]
RESPONSES = ["because", "so", "no reason", "because", "because"]
ASKED = ["ann", "bob", "ann", None, None]


@pytest.fixture
def tree(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with `models/base`, which is the current one."""
    shutil.copytree(tiny_path, tmp_path / "models" / "base")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRLHF_DEVICE", "cpu")
    return tmp_path


def randomised(
    base: BaseModel, kind: str = "individual", max_user_text: int | None = None
) -> PersonalizedRewardModel:
    model = PersonalizedRewardModel(personalise(base, kind, max_user_text=max_user_text))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.head.weight.copy_(torch.randn(model.head.weight.shape, generator=generator))
    return model.eval()


def saved(kind: str = "individual") -> tuple[PersonalizedRewardModel, Path]:
    model = randomised(load_base(Path("models/base"), "float32"), kind)
    directory = Path("models/reward_pdpo")
    directory.mkdir()
    model.save_pretrained(directory)
    return model, directory


@pytest.mark.parametrize("kind", ["uniform", "individual", "cluster"])
def test_a_round_trip_gives_the_same_rewards(tree: Path, kind: str) -> None:
    model, directory = saved(kind)
    expected = model.reward(PROMPTS, RESPONSES, ASKED)
    loaded = PersonalizedRewardModel.from_pretrained(directory)
    assert loaded.reward(PROMPTS, RESPONSES, ASKED) == expected
    assert loaded.user_model.kind == kind
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_users_go_by_their_own_ids(tree: Path) -> None:
    _, directory = saved()
    loaded = PersonalizedRewardModel.from_pretrained(directory)
    asked = ["Why?"] * 3, ["because"] * 3
    rewards = loaded.reward(*asked, ["ann ", "bob", None])
    assert len({round(value, 3) for value in rewards}) == 3
    with pytest.raises(UserError, match="not among the 3 users that the model knows: 'zoe'"):
        loaded.reward(*asked, ["ann", "zoe", None])


def test_what_users_say_counts_for_models_that_read_it(tiny_base: BaseModel) -> None:
    model = randomised(tiny_base, max_user_text=16)
    texts = ["I teach.", "I cook.", "I teach.", None, None]
    found = model.reward(PROMPTS, RESPONSES, ["ann"] * 5, texts)
    encoder = model.lm.encoder
    for value, prompt, response, text in zip(found, PROMPTS, RESPONSES, texts, strict=True):
        prefix = encoder.prompt(json.dumps([{"role": "user", "content": prompt}]), text)
        row = Row(model.user_model.index("ann"), prefix, [encoder.response(response)])
        assert value == pytest.approx(model.score([row], label="").item(), abs=1e-5)
    assert found[0] != pytest.approx(found[4], abs=1e-4)
    encoder.max_user_text = None
    with pytest.raises(UserError, match="reads no user texts"):
        model.reward(PROMPTS, RESPONSES, ASKED, texts)


def test_rewards_come_in_the_order_of_the_questions(tiny_base: BaseModel) -> None:
    """Whatever is packed together, each is what it would be alone."""
    model = randomised(tiny_base)
    together = model.reward(PROMPTS, RESPONSES, ASKED)
    alone = [
        model.reward([prompt], [response], [user])[0]
        for prompt, response, user in zip(PROMPTS, RESPONSES, ASKED, strict=True)
    ]
    assert together == pytest.approx(alone, abs=1e-4)
    assert len({round(value, 3) for value in together}) == 4  # the last two are the same question
    model.lm.shares_prompts = False
    assert model.reward(PROMPTS, RESPONSES, ASKED) == pytest.approx(alone, abs=1e-4)
    assert model.reward([], [], []) == []


def test_prompts_are_text_or_messages(tiny_base: BaseModel) -> None:
    model = randomised(tiny_base)
    messages = [{"role": "user", "content": "Why?"}]
    one, other = model.reward(["Why?", messages], ["because"] * 2, ["ann"] * 2)
    assert one == pytest.approx(other, abs=1e-5)


def test_the_last_token_counts(tiny_base: BaseModel) -> None:
    """The state that the head reads has read the whole response."""
    model = randomised(tiny_base)
    first, second = model.score([Row(1, [5, 6], [[7, 8, 9], [7, 8, 10]])], label="test").tolist()
    assert abs(first - second) > 1e-2


def test_many_rows_are_scored_in_order(tiny_base: BaseModel) -> None:
    model = randomised(tiny_base)
    rows = [Row(i % 4, [5] * (1 + i % 5), [[7 + i, 1], [9, 8 + i, 1]]) for i in range(9)]
    expected = [model.score([row], label="test") for row in rows]
    got = model.score(rows, label="test", max_rows=2, max_positions=30)
    torch.testing.assert_close(got, torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_plain_peft_loads_the_adapter(tree: Path) -> None:
    model, directory = saved()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        plain = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained("models/base"), str(directory)
        )
    ids = torch.arange(2, 20)[None]
    with torch.no_grad():
        assert torch.equal(plain.eval()(ids).logits, model.lm.lm(ids).logits)


def test_errors_name_what_is_wrong(tree: Path) -> None:
    model, directory = saved()
    with pytest.raises(UserError, match="2 prompts, 1 responses and 2 users"):
        model.reward(["a", "b"], ["c"], ["ann", "bob"])
    (directory / HEAD).unlink()
    PersonalizedLM.from_pretrained(directory)
    with pytest.raises(UserError, match=r"models/reward_pdpo: holds no reward model"):
        PersonalizedRewardModel.from_pretrained(directory)

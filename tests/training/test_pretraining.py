"""Soft-prompt pretraining of the user model, with the language model frozen."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from personal import personalise
from preferences import mirrored, some_pairs
from prlhf.models.base import BaseModel
from prlhf.params import PretrainParams
from prlhf.training.dataset import PreferenceExample
from prlhf.training.finetune import train_soft_prompts


def opposed_pairs() -> list[PreferenceExample]:
    """Two users who disagree about the very same pairs."""
    return [one for pair in some_pairs(3, users=1) for one in (pair, mirrored(pair, user_index=2))]


def soft(lm, *, steps: int = 6, seed: int = 0, pairs=None) -> list[float]:
    pretrain = PretrainParams.model_construct(
        soft_prompt_alpha=0.5,
        soft_prompt_steps=steps,
        soft_prompt_lr=0.05,
        soft_prompt_beta=0.3,
        soft_prompt_batch_size=4,
    )
    return train_soft_prompts(lm, pairs or opposed_pairs(), pretrain, seed=seed, label="test")


@pytest.mark.parametrize("kind", ["individual", "cluster"])
def test_soft_prompts_train_the_user_model_only(tiny_base: BaseModel, kind: str) -> None:
    lm = personalise(tiny_base, kind, lora=False)
    before = {name: p.detach().clone() for name, p in lm.named_parameters()}
    losses = soft(lm, steps=12)
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    for name, parameter in lm.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert changed == name.startswith("user_model."), name
    table = lm.user_model.sparse_parameters()[0]
    old = before[
        "user_model.offsets.weight" if kind == "individual" else "user_model.weights.weight"
    ]
    assert torch.equal(table[3], old[3])  # user 3 has no pairs
    assert not torch.equal(table[1], old[1])


def test_soft_prompts_depend_on_the_seed_alone(tiny_base: BaseModel) -> None:
    start = personalise(tiny_base, lora=False)
    torch.manual_seed(1)
    one = soft(copy.deepcopy(start), steps=3, seed=5)
    torch.manual_seed(2)
    assert soft(copy.deepcopy(start), steps=3, seed=5) == one
    assert soft(copy.deepcopy(start), steps=3, seed=6) != one


def test_fewer_pairs_than_a_batch(tiny_base: BaseModel) -> None:
    lm = personalise(tiny_base, lora=False)
    assert len(soft(lm, steps=2, pairs=opposed_pairs()[:1])) == 2

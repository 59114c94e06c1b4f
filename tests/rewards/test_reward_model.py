"""The personalised reward model: its loss written out, its training, what it learns."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

import naive
import prlhf.training.finetune as finetune_module
from personal import START, assert_same_gradients, gradients, personalise, with_prior
from preferences import KeepGradients, arguments, mirrored, optimizer_params, some_pairs
from prlhf.models.base import BaseModel
from prlhf.models.pretrained import Pretrained
from prlhf.params import RewardTrainParams
from prlhf.rewards.lm import PersonalizedRewardModel, score_held_out
from prlhf.rewards.training import RewardTrainer, reward_loss
from prlhf.training.callbacks import ShowProgress
from prlhf.training.dataset import PreferenceCollator, PreferenceDataset, PreferenceExample
from prlhf.training.finetune import fit
from prlhf.training.trainer import conditions

# A reward model has no reference: whatever used one would be NaN.
PAIRS = [
    replace(pair, ref_chosen=math.nan, ref_rejected=math.nan)
    for pair in some_pairs(8, weights=True)
]


def reward_model(base: BaseModel, kind: str = "individual", **options: Any) -> Any:
    """A tiny reward model whose every part does something."""
    model = PersonalizedRewardModel(personalise(base, kind, **options))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        model.head.weight.copy_(torch.randn(model.head.weight.shape, generator=generator))
    return model.eval()


def parameters(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# -- the loss ------------------------------------------------------------------------------------


def naive_reward(model: Any, user: int, prompt: list[int], response: list[int]) -> Tensor:
    """v . h at the response's last token, one sequence at a time."""
    lm = model.lm
    inputs = lm.lm.get_input_embeddings()(torch.tensor([*prompt, *response]))
    embedding = naive.embedding_of(lm.user_model)(user)
    if embedding is not None:
        inputs = torch.cat([embedding, inputs])
    output = lm.lm(inputs_embeds=inputs.unsqueeze(0), output_hidden_states=True)
    return output.hidden_states[-1][0, -1] @ model.head.weight[0]


def naive_loss(model: Any, pairs: list[PreferenceExample], alpha: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for pair in pairs:
        terms = []
        for user in (pair.user_index, 0):
            chosen, rejected = (
                naive_reward(model, user, pair.prompt, response)
                for response in (pair.chosen, pair.rejected)
            )
            terms.append(torch.log1p(torch.exp(rejected - chosen)))
        loss = alpha * terms[0] + (1 - alpha) * terms[1]
        if alpha > 0:
            loss = loss + naive.prior(model.user_model, pair.user_index)
        total = total + pair.weight * loss
    return total / sum(pair.weight for pair in pairs)


def our_loss(model: Any, pairs: list[PreferenceExample], alpha: float) -> Tensor:
    batch = PreferenceCollator(model.pack, *conditions(model, alpha))(pairs)["batch"]
    weight = batch.weight.double()
    return (weight * reward_loss(model, batch, alpha).loss).sum() / weight.sum()


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize(
    ("kind", "alpha"),
    [("individual", 0.3), ("cluster", 0.3), ("uniform", 0.3), ("cluster", 0.0), ("cluster", 1.0)],
)
def test_loss_and_gradient_of_a_batch(
    tiny_base: BaseModel, kind: str, alpha: float, shares: bool
) -> None:
    model = naive.double(reward_model(tiny_base, kind))
    with_prior(model.user_model)
    model.lm.shares_prompts = shares
    ours, expected = our_loss(model, PAIRS[:5], alpha), naive_loss(model, PAIRS[:5], alpha)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    found, wanted = gradients(model, ours), gradients(model, expected)
    assert any("lora_A" in name for name in found)
    assert found["head.weight"].any()
    assert_same_gradients(found, wanted, atol=1e-10)


def test_a_fresh_head_is_indifferent(tiny_base: BaseModel) -> None:
    model = PersonalizedRewardModel(personalise(tiny_base))
    batch = PreferenceCollator(model.pack, True, True)(PAIRS)["batch"]
    result = reward_loss(model, batch, 0.5)
    torch.testing.assert_close(result.loss, torch.full((8,), math.log(2)))
    assert result.metrics["accuracy_user"].tolist() == [0.5] * 8


def test_metrics(tiny_base: BaseModel) -> None:
    model = naive.double(reward_model(tiny_base))
    batch = PreferenceCollator(model.pack, True, True)(PAIRS)["batch"]
    metrics = reward_loss(model, batch, 0.25).metrics
    for i, pair in enumerate(PAIRS):
        for name, user in (("user", pair.user_index), ("generic", 0)):
            chosen, rejected = (
                naive_reward(model, user, pair.prompt, response).item()
                for response in (pair.chosen, pair.rejected)
            )
            assert float(metrics[f"margin_{name}"][i]) == pytest.approx(chosen - rejected)
            assert float(metrics[f"accuracy_{name}"][i]) == float(chosen > rejected)


# -- training ------------------------------------------------------------------------------------


def train(
    model: PersonalizedRewardModel,
    where: Path,
    pairs: list[PreferenceExample] = PAIRS,
    **changes: Any,
) -> RewardTrainer:
    callbacks = changes.pop("callbacks", [])
    alpha = changes.pop("alpha", 0.5)
    settings = optimizer_params(**changes)
    trainer = RewardTrainer(
        model,
        RewardTrainParams(pairs="train", alpha=alpha),
        settings,
        arguments=arguments(settings, where, pairs=len(pairs)),
        train_pairs=pairs,
        eval_pairs=pairs[: settings.eval_pairs],
        callbacks=callbacks,
    )
    trainer.train()
    return trainer


def test_accumulation_gives_the_gradient_of_one_large_batch(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    found = []
    start = reward_model(tiny_base, "cluster").double()
    with_prior(start.user_model)
    for micro in (1, 2, 4):
        keep = KeepGradients()
        model = copy.deepcopy(start)
        train(model, tmp_path / str(micro), micro_batch_size=micro, max_steps=1, callbacks=[keep])
        found.append(keep.found)
    assert "head.weight" in found[0]
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, gradient in other.items():
            torch.testing.assert_close(gradient, found[0][name], rtol=1e-4, atol=1e-7)


def test_only_head_adapter_and_the_users_who_came_by_move(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    model = reward_model(tiny_base)
    before = parameters(model)
    train(model, tmp_path, [replace(pair, user_index=2) for pair in PAIRS], epochs=2.0)
    after = parameters(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    trained = ("lora_", "user_model.", "head.")
    assert moved == {name for name in before if any(part in name for part in trained)}
    table = "lm.user_model.offsets.weight"
    same = [torch.equal(a, b) for a, b in zip(before[table], after[table], strict=True)]
    assert same == [True, True, False, True]


def test_the_head_has_the_learning_rate_of_the_adapter(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    """Adam's first step is the learning rate, whatever the gradient's size."""
    model = reward_model(tiny_base)
    before = model.head.weight.detach().clone()
    train(model, tmp_path, max_steps=1, lora_lr=0.25, weight_decay=0.0)
    step = (model.head.weight.detach() - before).abs()
    torch.testing.assert_close(step, torch.full_like(step, 0.25), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", ["individual", "uniform"])
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(
    tiny_base: BaseModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    class Interrupting(ShowProgress):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step == 5:
                raise KeyboardInterrupt

    def run(model: PersonalizedRewardModel, where: Path) -> pd.DataFrame:
        settings = optimizer_params(
            batch_size=2, micro_batch_size=1, epochs=2.0, checkpoint_every=0.3, eval_every=0.4
        )
        return fit(
            RewardTrainer,
            model,
            RewardTrainParams(pairs="train", alpha=0.5),
            settings,
            {"train": PAIRS, "validation": PAIRS[:3]},
            checkpoints=where,
            seed=5,
            label="test",
        ).curves

    start = reward_model(tiny_base, kind, dropout=0.2)
    whole = copy.deepcopy(start)
    expected = run(whole, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(finetune_module, "ShowProgress", Interrupting)
        with pytest.raises(KeyboardInterrupt):
            run(copy.deepcopy(start), tmp_path / "cut")
    resumed = copy.deepcopy(start)
    got = run(resumed, tmp_path / "cut")
    # From what the validation left.
    assert "resuming from step 4" in capsys.readouterr().err
    for name, weight in parameters(whole).items():
        assert torch.equal(parameters(resumed)[name], weight), name
    assert not torch.equal(whole.head.weight, start.head.weight)
    pd.testing.assert_frame_equal(got, expected)


# -- what it learns ------------------------------------------------------------------------------


def lengths(count: int, seed: int) -> list[PreferenceExample]:
    """User 1 wants the longer response, user 2 the shorter one of the same two."""
    pairs = []
    for pair in some_pairs(count, users=1, seed=seed):
        long, short = pair.chosen[:1] * 6 + [1], pair.rejected[:1] * 2 + [1]
        pairs.append(replace(pair, chosen=long, rejected=short))
        pairs.append(mirrored(pairs[-1], user_index=2))
    return pairs


def test_users_who_disagree_are_told_apart_on_new_texts(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    model = PersonalizedRewardModel(personalise(tiny_base))
    trainer = train(
        model,
        tmp_path,
        lengths(48, seed=1),
        epochs=8.0,
        batch_size=8,
        micro_batch_size=8,
        lora_lr=5e-3,
        user_lr=2.5,
    )
    metrics = trainer.evaluate(lengths(40, seed=2))
    assert metrics["eval_accuracy_user"] >= 0.85
    assert metrics["eval_accuracy_generic"] == 0.5


@pytest.mark.parametrize("kind", ["cluster", "individual"])
def test_users_are_told_apart_without_pretraining(
    tiny_base: BaseModel, tmp_path: Path, kind: str
) -> None:
    """As a reward model starts that is to judge: everyone is the same."""
    known = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    free = {"weights_spread": None, "offset_spread": None, "generic_pull": 0.0}
    options = {**START, **free, "init_scale": 1.0}
    gus = Pretrained(["gus"], options, torch.tensor([0.0, 5.0]), known)
    pretrained = gus.untrained(["ann", "bob"], torch.tensor([0.0, 24.0, 24.0]))
    assert pretrained.weights is None
    lm = personalise(tiny_base)
    lm.user_model = pretrained.initial(kind, lm.base)
    if kind == "cluster":
        assert lm.user_model.config()["clusters"] == 3
    embeddings = lm.user_model(torch.tensor([0, 1, 2]))
    torch.testing.assert_close(embeddings, embeddings[:1].expand_as(embeddings))
    trainer = train(
        PersonalizedRewardModel(lm),
        tmp_path,
        lengths(48, seed=1),
        epochs=8.0,
        batch_size=8,
        micro_batch_size=8,
        lora_lr=5e-3,
        user_lr=7.5,
        weights_lr=0.15,
    )
    assert trainer.evaluate(lengths(40, seed=2))["eval_accuracy_user"] >= 0.85


# -- held-out accuracy ---------------------------------------------------------------------------


def prepared(rows: list[tuple[str, int, str]]) -> pd.DataFrame:
    """A prepared table: user, index, prompt; the chosen response is always the same."""
    return pd.DataFrame(
        {
            "pair_id": [str(i) for i in range(len(rows))],
            "prompt_id": [prompt for _, _, prompt in rows],
            "user_id": [user for user, _, _ in rows],
            "user_index": [index for _, index, _ in rows],
            "group": None,
            "prompt": [f'[{{"role":"user","content":"{prompt}"}}]' for _, _, prompt in rows],
            "chosen": "yes",
            "rejected": "no",
            "weight": 1.0,
        }
    )


def test_held_out_pairs_are_scored_as_who_judged_them_and_as_nobody(tiny_base: BaseModel) -> None:
    model = reward_model(tiny_base)
    test = prepared([("ann", 1, "a"), ("bob", 2, "a")])
    unseen = prepared([("zoe", 0, "b"), ("zoe", 0, "c")]).assign(prompt_split=["test", "train"])
    table = score_held_out(model, test, unseen, label="test")
    expected = []
    for user, prompt in ((1, "a"), (2, "a"), (0, "a"), (0, "a"), (0, "b")):
        name = [None, "ann", "bob"][user]
        chosen, rejected = model.reward([prompt] * 2, ["yes", "no"], [name] * 2)
        expected.append(chosen - rejected)
    assert table["margin"].tolist() == pytest.approx(expected, abs=1e-4)
    assert table["condition"].tolist() == ["user", "user", "generic", "generic", "generic"]
    assert table["split"].tolist() == ["test"] * 4 + ["unseen"]
    # A user who was held out of training may be known to the reward model.
    known = score_held_out(model, test.iloc[:0], unseen.assign(user_id="ann"), label="test")
    assert known["condition"].tolist() == ["user", "generic"]
    assert known["split"].tolist() == ["test"] * 2


def test_pairs_have_no_reference(tiny_base: BaseModel) -> None:
    encoder = personalise(tiny_base).encoder
    [pair] = PreferenceDataset(prepared([("ann", 1, "a")]), None, encoder)
    assert math.isnan(pair.ref_chosen)
    assert math.isnan(pair.ref_rejected)
    assert (pair.user_index, pair.chosen) == (1, encoder.response("yes"))

"""P-DPO on the Trainer: accumulation, what moves and what does not, and what is recorded."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from personal import personalise, with_prior
from preferences import (
    KeepGradients,
    arguments,
    mirrored,
    optimizer_params,
    sections,
    some_pairs,
)
from prlhf.models.base import BaseModel, Encoder
from prlhf.models.personalized import PersonalizedLM
from prlhf.training.callbacks import COLUMNS, training_curves
from prlhf.training.dataset import PreferenceExample
from prlhf.training.finetune import fit
from prlhf.training.trainer import PDPOTrainer

PAIRS = some_pairs(8, weights=True)


def parameters(lm: PersonalizedLM) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in lm.named_parameters()}


def train(
    lm: PersonalizedLM,
    where: Path,
    pairs: list[PreferenceExample] = PAIRS,
    *,
    callbacks: list[TrainerCallback] | None = None,
    seed: int = 0,
    **changes: Any,
) -> PDPOTrainer:
    """Train as `fit` does, and keep the trainer."""
    objective, params = sections(**changes)
    trainer = PDPOTrainer(
        lm,
        objective,
        params,
        arguments=arguments(params, where, pairs=len(pairs), seed=seed),
        train_pairs=pairs,
        eval_pairs=pairs[: params.eval_pairs],
        callbacks=callbacks or [],
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", ["individual", "cluster", "uniform"])
def test_accumulation_gives_the_gradient_of_one_large_batch(
    tiny_base: BaseModel, tmp_path: Path, kind: str
) -> None:
    found, after = [], []
    start = personalise(tiny_base, kind).double()
    with_prior(start.user_model)
    for micro in (1, 2, 4):
        lm = copy.deepcopy(start)
        keep = KeepGradients()
        train(
            lm,
            tmp_path / str(micro),
            micro_batch_size=micro,
            max_steps=2,
            nll_coef=0.5,
            dpop_coef=0.5,
            callbacks=[keep],
        )
        found.append(keep.found)
        after.append(parameters(lm))
    assert any("lora_B" in name for name in found[0])
    for gradients, weights in zip(found[1:], after[1:], strict=True):
        assert gradients.keys() == found[0].keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, found[0][name], rtol=1e-4, atol=1e-7)
        for name, weight in weights.items():
            # Adam divides by the gradient's size: where that is rounding, so is the step.
            torch.testing.assert_close(weight, after[0][name], rtol=1e-3, atol=1e-5)


def test_a_last_batch_that_is_not_full_is_a_mean_too(tiny_base: BaseModel, tmp_path: Path) -> None:
    """5 pairs in steps of 4: the second step is one pair, with the weight of a whole step."""
    found = []
    start = personalise(tiny_base).double()
    for micro in (1, 4):
        lm = copy.deepcopy(start)
        train(lm, tmp_path / str(micro), PAIRS[:5], micro_batch_size=micro)
        found.append(parameters(lm))
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], rtol=1e-3, atol=1e-5)


def test_only_adapter_and_user_model_move(tiny_base: BaseModel, tmp_path: Path) -> None:
    lm = personalise(tiny_base)
    before = parameters(lm)
    train(lm, tmp_path)
    after = parameters(lm)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {n for n in before if "lora_" in n or n.startswith("user_model.")}


def test_users_who_did_not_come_by_stay_the_same(tiny_base: BaseModel, tmp_path: Path) -> None:
    lm = personalise(tiny_base)
    before = lm.user_model.offsets.weight.detach().clone()
    train(lm, tmp_path, [replace(pair, user_index=2) for pair in PAIRS], epochs=2.0)
    after = lm.user_model.offsets.weight.detach()
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [True, True, False, True]
    assert not after[0].any()


def test_alpha_of_zero_trains_the_generic_model_only(tiny_base: BaseModel, tmp_path: Path) -> None:
    lm = personalise(tiny_base)
    before = parameters(lm)
    train(lm, tmp_path, alpha=0.0)
    after = parameters(lm)
    assert torch.equal(before["user_model.offsets.weight"], after["user_model.offsets.weight"])
    assert not torch.equal(before["user_model.shared"], after["user_model.shared"])


@pytest.mark.parametrize("prior", [False, True])
def test_alpha_of_one_trains_the_personalised_term_only(
    tiny_base: BaseModel, tmp_path: Path, prior: bool
) -> None:
    lm = personalise(tiny_base, "cluster")
    if prior:  # draws the generic user to the others
        with_prior(lm.user_model)
    before = parameters(lm)
    train(lm, tmp_path, alpha=1.0)
    after = parameters(lm)
    name = "user_model.generic_weights"
    assert torch.equal(before[name], after[name]) == (not prior)
    assert not torch.equal(before["user_model.centres"], after["user_model.centres"])


def test_users_who_disagree_each_get_their_way(tiny_base: BaseModel, tmp_path: Path) -> None:
    """Two users judge the very same pairs the opposite way: one model serves both."""
    reference = PersonalizedLM.reference(tiny_base, Encoder(tiny_base.chat, 64, 32))
    pairs = []
    for pair in some_pairs(4):
        chosen, rejected = reference.score([pair.row(0)], label="test").logps.tolist()
        pairs.append(replace(pair, user_index=1, ref_chosen=chosen, ref_rejected=rejected))
        pairs.append(mirrored(pairs[-1], user_index=2))
    lm = personalise(tiny_base)
    trainer = train(
        lm, tmp_path, pairs, beta=2.0, epochs=12.0, lora_lr=5e-3, user_lr=2.5, eval_pairs=8
    )
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy_user"] == 1.0
    assert metrics["eval_accuracy_generic"] == 0.5


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_a_schedule_reaches_all_learning_rates(
    tiny_base: BaseModel, tmp_path: Path, schedule: str
) -> None:
    seen: list[list[float]] = []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs) -> None:
            seen.append([group["lr"] for group in optimizer.param_groups])

    lm = personalise(tiny_base, "cluster")
    train(
        lm,
        tmp_path,
        callbacks=[Watch()],
        epochs=4.0,
        schedule=schedule,
        warmup_ratio=0.25,
        lora_lr=1e-3,
        user_lr=0.5,
        weights_lr=2e-2,
    )
    # The adapter, the clusters' embeddings, and the logits of the generic user and of the others.
    rates = [1e-3, 0.5 * lm.base.embedding_std, 2e-2, 2e-2]
    # 8 steps, 2 of them warming up
    factor = {
        "constant": lambda t: 1.0,
        "linear": lambda t: 1 - t,
        "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
    }[schedule]
    expected = [0.0, 0.5, *(factor(i / 6) for i in range(6))]
    assert len(seen) == 8
    for found, share in zip(seen, expected, strict=True):
        assert found == pytest.approx([rate * share for rate in rates], abs=1e-12)


def test_gradients_are_clipped_jointly(tiny_base: BaseModel, tmp_path: Path) -> None:
    keep = KeepGradients()
    lm = personalise(tiny_base)
    train(lm, tmp_path, callbacks=[keep], max_steps=1, max_grad_norm=0.01)
    norm = torch.stack([g.norm() for g in keep.found.values()]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


def test_activation_checkpointing_changes_nothing(tiny_base: BaseModel, tmp_path: Path) -> None:
    found = []
    start = personalise(tiny_base)
    for recompute in (False, True):
        lm = copy.deepcopy(start)
        train(lm, tmp_path / str(recompute), gradient_checkpointing=recompute)
        found.append(parameters(lm))
        layer = lm.causal_lm.model.layers[0]
        assert layer.gradient_checkpointing == recompute
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], rtol=1e-4, atol=1e-6)


def test_runs_repeat_themselves(tiny_base: BaseModel, tmp_path: Path) -> None:
    start = personalise(tiny_base, dropout=0.2)
    found = []
    for run, (seed, elsewhere) in enumerate(((3, 1), (3, 2), (4, 1))):
        lm = copy.deepcopy(start)
        torch.manual_seed(elsewhere)
        fit(
            PDPOTrainer,
            lm,
            *sections(max_steps=2),
            {"train": PAIRS, "validation": PAIRS[:2]},
            checkpoints=tmp_path / str(run),
            seed=seed,
            label="test",
        )
        found.append(parameters(lm))
    same = [all(torch.equal(found[0][n], other[n]) for n in other) for other in found[1:]]
    assert same == [True, False]


def test_evaluation_leaves_training_alone(tiny_base: BaseModel, tmp_path: Path) -> None:
    start = personalise(tiny_base, dropout=0.2)
    found = []
    for every in (0.25, 1.0):
        lm = copy.deepcopy(start)
        trainer = train(lm, tmp_path / str(every), eval_every=every, epochs=2.0)
        found.append((parameters(lm), [e for e in trainer.state.log_history if "loss" in e]))
    assert all(torch.equal(found[0][0][n], found[1][0][n]) for n in found[0][0])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert one == other


def test_what_a_log_entry_says(tiny_base: BaseModel, tmp_path: Path) -> None:
    """The first entry is about the first step: weighted means over its pairs, before the update."""
    lm = personalise(tiny_base)
    pairs = PAIRS[:4]
    start = copy.deepcopy(lm)
    trainer = train(lm, tmp_path, pairs, micro_batch_size=2, max_steps=1)
    first = next(e for e in trainer.state.log_history if "loss" in e)
    other = PDPOTrainer(
        start,
        trainer.objective,
        optimizer_params(),
        arguments=arguments(optimizer_params(), tmp_path, pairs=len(pairs)),
        train_pairs=pairs,
        eval_pairs=pairs,
    )
    means = other.evaluate()
    for name in ("loss", "preference_loss", "nll", "accuracy_user", "margin_generic"):
        assert first[name] == pytest.approx(means[f"eval_{name}"], rel=1e-5), name
    assert first["learning_rate"] == optimizer_params().lora_lr
    assert first["grad_norm"] > 0


def test_evaluating_nothing(tiny_base: BaseModel, tmp_path: Path) -> None:
    trainer = train(personalise(tiny_base), tmp_path, max_steps=1)
    assert trainer.evaluate([]) == {}


def test_the_curves(tiny_base: BaseModel, tmp_path: Path) -> None:
    table = fit(
        PDPOTrainer,
        personalise(tiny_base),
        *sections(epochs=6.0, eval_every=1 / 3, eval_pairs=3),
        {"train": PAIRS, "validation": PAIRS},
        checkpoints=tmp_path,
        seed=0,
        label="test",
    ).curves
    assert list(table.columns) == list(COLUMNS)
    # 12 steps; logged at the first, then at every fifth; validated at every fourth
    assert table[table["split"] == "train"]["step"].tolist() == [1, 5, 10]
    assert table[table["split"] == "validation"]["step"].tolist() == [4, 8, 12]
    numbers = ["loss", "preference_loss", "nll", "accuracy_user", "margin_user", "margin_generic"]
    assert table[numbers].notna().all().all()
    trained = table[table["split"] == "train"]
    assert trained[["learning_rate", "grad_norm"]].notna().all().all()
    assert trained["learning_rate"].is_monotonic_decreasing


def test_curves_leave_out_what_was_not_computed(tiny_base: BaseModel, tmp_path: Path) -> None:
    trainer = train(personalise(tiny_base, "uniform"), tmp_path, max_steps=2)
    columns = set(training_curves(trainer.state.log_history).columns)
    assert {"accuracy_generic", "margin_generic", "loss"} <= columns
    assert not {"accuracy_user", "margin_user"} & columns

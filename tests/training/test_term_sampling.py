"""One drawn term a pair: the same objective on average, and the same draws in every run."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch import Tensor
from torch.utils.data import BatchSampler

import prlhf.training.finetune as finetune_module
from personal import assert_same_gradients, gradients, personalise, with_prior
from preferences import arguments, sections, some_pairs, train_params
from prlhf.models.base import BaseModel
from prlhf.models.personalized import PersonalizedLM
from prlhf.rewards.lm import PersonalizedRewardModel
from prlhf.rewards.training import reward_loss
from prlhf.training.callbacks import ShowProgress
from prlhf.training.dataset import PreferenceCollator, PreferenceExample
from prlhf.training.finetune import fit
from prlhf.training.losses import PairLosses, pdpo_loss
from prlhf.training.order import PreferenceSampler, Visit, drawn_terms, epoch_order
from prlhf.training.trainer import PDPOTrainer, conditions

PAIRS = some_pairs(8, weights=True)
ALPHA = 0.3


def exact(base: BaseModel, kind: str) -> PersonalizedLM:
    lm = personalise(base, kind).double()
    with_prior(lm.user_model)
    return lm


def losses(model: Any, pairs: list[PreferenceExample]) -> PairLosses:
    """Of P-DPO or, with a reward model, of P-RM."""
    batch = PreferenceCollator(model.pack, *conditions(model, ALPHA))(pairs)["batch"]
    if isinstance(model, PersonalizedRewardModel):
        return reward_loss(model, batch, ALPHA)
    return pdpo_loss(model, batch, train_params(alpha=ALPHA, beta=0.5, nll_coef=0.7, dpop_coef=0.4))


def mean_loss(model: Any, pairs: list[PreferenceExample]) -> Tensor:
    weight = torch.tensor([pair.weight for pair in pairs], dtype=torch.float64)
    return (weight * losses(model, pairs).loss).sum() / weight.sum()


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("reward", [False, True])
@pytest.mark.parametrize("kind", ["individual", "cluster"])
def test_the_expectation_over_all_draws_is_the_objective_and_its_gradient(
    tiny_base: BaseModel, kind: str, reward: bool, shares: bool
) -> None:
    lm = exact(tiny_base, kind)
    lm.shares_prompts = shares
    model: Any = lm
    if reward:
        model = PersonalizedRewardModel(lm).double()
        torch.nn.init.constant_(model.head.weight, 0.3)
    pairs = PAIRS[:3]
    expected = mean_loss(model, pairs)
    wanted = gradients(model, expected)
    value, spread = 0.0, set()
    found = {name: torch.zeros_like(slope) for name, slope in wanted.items()}
    for draw in itertools.product([True, False], repeat=len(pairs)):
        probability = ALPHA ** sum(draw) * (1 - ALPHA) ** (len(draw) - sum(draw))
        drawn = [replace(pair, as_user=term) for pair, term in zip(pairs, draw, strict=True)]
        loss = mean_loss(model, drawn)
        spread.add(round(loss.item(), 6))
        value += probability * loss.item()
        for name, slope in gradients(model, loss).items():
            found[name] += probability * slope
    assert len(spread) == 8  # every draw is another estimate
    assert value == pytest.approx(expected.item(), rel=1e-6)
    assert any(slope.any() for name, slope in wanted.items() if "user_model" in name)
    assert_same_gradients(found, wanted, atol=1e-7)


def test_a_drawn_batch_is_half_of_a_whole_one(tiny_base: BaseModel) -> None:
    lm = personalise(tiny_base)
    collate = PreferenceCollator(lm.pack, True, True)
    draw = [True, False, False, True, False]
    whole = collate(PAIRS[:5])["batch"]
    drawn = collate([replace(p, as_user=d) for p, d in zip(PAIRS[:5], draw, strict=True)])["batch"]
    assert len(whole.packed.input_ids) == 10
    assert len(drawn.packed.input_ids) == 5
    users = [pair.user_index if d else 0 for pair, d in zip(PAIRS[:5], draw, strict=True)]
    assert drawn.packed.user_index.tolist() == users
    assert drawn.to("cpu").drawn.tolist() == draw


def test_metrics_are_of_the_pairs_that_have_them(tiny_base: BaseModel) -> None:
    lm = personalise(tiny_base)
    draw = [True, False, True, False]
    drawn = [replace(pair, as_user=d) for pair, d in zip(PAIRS[:4], draw, strict=True)]
    whole, part = losses(lm, PAIRS[:4]), losses(lm, drawn)
    for name, mask in (("user", torch.tensor(draw)), ("generic", ~torch.tensor(draw))):
        for metric in (f"margin_{name}", f"accuracy_{name}"):
            assert torch.equal(part.known[metric], mask)
            torch.testing.assert_close(part.metrics[metric][mask], whole.metrics[metric][mask])
    assert not whole.known
    assert part.metrics.keys() == whole.metrics.keys()


# -- the draws -----------------------------------------------------------------------------------


def test_draws_depend_on_seed_epoch_and_pair_only() -> None:
    first = drawn_terms(2000, 0.3, seed=1, epoch=0)
    torch.manual_seed(5)
    assert drawn_terms(2000, 0.3, seed=1, epoch=0) == first
    for other in (drawn_terms(2000, 0.3, 2, 0), drawn_terms(2000, 0.3, 1, 1)):
        # Two independent draws agree in 0.3^2 + 0.7^2 of the pairs.
        agreeing = sum(a == b for a, b in zip(first, other, strict=True)) / 2000
        assert agreeing == pytest.approx(0.58, abs=0.04)
    # More pairs leave the draws of the first ones alone.
    assert drawn_terms(3000, 0.3, 1, 0)[:2000] == first


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_a_pair_is_seen_as_its_user_with_probability_alpha(alpha: float) -> None:
    draws = torch.tensor([drawn_terms(50, alpha, 3, epoch) for epoch in range(400)]).double()
    assert draws.mean().item() == pytest.approx(alpha, abs=0.01)
    # ... every pair, over the epochs; 5 standard deviations
    assert (draws.mean(0) - alpha).abs().max().item() < 5 * (alpha * (1 - alpha) / 400) ** 0.5


def test_an_epoch_visits_every_pair_once() -> None:
    epoch = 0
    order = PreferenceSampler([1] * 9, seed=4, epoch=lambda: epoch, alpha=0.5)
    found = []
    for epoch in (0, 1, 0):
        found.append(list(order))
        assert sorted(visit.position for visit in found[-1]) == list(range(9))
        terms = drawn_terms(9, 0.5, 4, epoch)
        assert all(visit.as_user == terms[visit.position] for visit in found[-1])
    assert found[0] == found[2] != found[1]
    whole = PreferenceSampler([1] * 9, seed=4, epoch=lambda: 0)
    # Drawing terms leaves the order of the data as it is.
    assert list(whole) == [Visit(visit.position, None) for visit in found[0]]
    assert [visit.position for visit in whole] == epoch_order(9, 4, 0)


def test_processes_share_the_visits_of_one() -> None:
    def batches(index: int) -> list[list[Visit]]:
        order = PreferenceSampler([1] * 16, seed=1, epoch=lambda: 2, alpha=0.5)
        return list(BatchSamplerShard(BatchSampler(order, 2, False), 2, index))

    alone = list(PreferenceSampler([1] * 16, seed=1, epoch=lambda: 2, alpha=0.5))
    together = [batch for two in zip(batches(0), batches(1), strict=True) for batch in two]
    assert [visit for batch in together for visit in batch] == alone


# -- training ------------------------------------------------------------------------------------


def run(lm: PersonalizedLM, checkpoints: Path, **changes: Any) -> Any:
    settings = {"term_sampling": True, "batch_size": 4, "micro_batch_size": 4, "epochs": 3.0}
    return fit(
        PDPOTrainer,
        lm,
        *sections(**{**settings, **changes}),
        {"train": PAIRS, "validation": PAIRS[:3]},
        checkpoints=checkpoints,
        seed=5,
        label="test",
    ).curves


def trained(lm: PersonalizedLM) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in lm.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("kind", "alpha"), [("cluster", 0.0), ("cluster", 1.0), ("uniform", 0.5)])
def test_where_there_is_one_term_nothing_is_drawn(
    tiny_base: BaseModel, tmp_path: Path, kind: str, alpha: float
) -> None:
    start = personalise(tiny_base, kind)
    found = []
    for sampling in (False, True):
        lm = copy.deepcopy(start)
        curves = run(lm, tmp_path / str(sampling), term_sampling=sampling, alpha=alpha)
        found.append((trained(lm), curves.to_csv()))
    assert found[0][1] == found[1][1]
    for name, weight in found[0][0].items():
        assert torch.equal(weight, found[1][0][name]), name


def test_it_trains_and_differs_from_both_terms(tiny_base: BaseModel, tmp_path: Path) -> None:
    start = personalise(tiny_base, "cluster")
    found = []
    for sampling in (False, True):
        lm = copy.deepcopy(start)
        run(lm, tmp_path / str(sampling), term_sampling=sampling)
        found.append(trained(lm))
    for name in found[0]:
        assert not torch.equal(found[0][name], found[1][name]), name


def test_accumulation_sees_the_same_draws(tiny_base: BaseModel, tmp_path: Path) -> None:
    start = exact(tiny_base, "individual")
    found = []
    for micro in (1, 4):
        lm = copy.deepcopy(start)
        run(lm, tmp_path / str(micro), micro_batch_size=micro)
        found.append(trained(lm))
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("step", [4, 9])
def test_a_resumed_run_sees_the_same_draws(
    tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Cut at the end of an epoch, and in the middle of one (4 steps each)."""

    class Interrupting(ShowProgress):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step == step + 1:
                raise KeyboardInterrupt

    start = personalise(tiny_base, "cluster", dropout=0.2)
    settings = {"batch_size": 2, "micro_batch_size": 1, "checkpoint_every": step / 12}
    whole = copy.deepcopy(start)
    expected = run(whole, tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(finetune_module, "ShowProgress", Interrupting)
        with pytest.raises(KeyboardInterrupt):
            run(copy.deepcopy(start), tmp_path / "cut", **settings)
    resumed = copy.deepcopy(start)
    torch.manual_seed(99)
    got = run(resumed, tmp_path / "cut", **settings)
    for name, weight in trained(whole).items():
        assert torch.equal(trained(resumed)[name], weight), name
    assert got.to_csv() == expected.to_csv()


def trainer(lm: PersonalizedLM, where: Path, **changes: Any) -> PDPOTrainer:
    train, params = sections(term_sampling=True, **changes)
    return PDPOTrainer(
        lm,
        train,
        params,
        arguments=arguments(params, where, pairs=len(PAIRS)),
        train_pairs=PAIRS,
        eval_pairs=PAIRS[:4],
    )


def test_validation_computes_both_terms(tiny_base: BaseModel, tmp_path: Path) -> None:
    lm = personalise(tiny_base)
    metrics = trainer(lm, tmp_path).evaluate()
    batch = PreferenceCollator(lm.pack, True, True)(PAIRS[:4])["batch"]
    result = pdpo_loss(lm, batch, train_params(alpha=0.5, beta=0.3))
    weight = batch.weight / batch.weight.sum()
    for name in ("margin_user", "margin_generic", "preference_loss"):
        expected = float((weight * result.metrics[name]).sum())
        assert metrics[f"eval_{name}"] == pytest.approx(expected, rel=1e-5)


def test_what_is_logged_of_the_drawn_terms(tiny_base: BaseModel, tmp_path: Path) -> None:
    """Means over the pairs seen under each condition; nothing where there were none."""
    lm = personalise(tiny_base)
    model = trainer(lm, tmp_path)
    collate, whole = model.data_collator, losses(lm, PAIRS[:2])
    for draw in ((True, False), (True, True)):
        drawn = [replace(p, as_user=d) for p, d in zip(PAIRS[:2], draw, strict=True)]
        model.compute_loss(model.model, collate(drawn))
    model.log({"loss": 0.0})
    entry = model.state.log_history[-1]
    weight = torch.tensor([2 * PAIRS[0].weight, PAIRS[1].weight])
    expected = (whole.metrics["margin_user"] * weight).sum() / weight.sum()
    assert entry["margin_user"] == pytest.approx(float(expected), rel=1e-4)
    generic = float(whole.metrics["margin_generic"][1])
    assert entry["margin_generic"] == pytest.approx(generic, rel=1e-4)

    model.compute_loss(model.model, collate([replace(p, as_user=True) for p in PAIRS[:2]]))
    model.log({"loss": 0.0})
    assert "margin_user" in model.state.log_history[-1]
    assert "margin_generic" not in model.state.log_history[-1]

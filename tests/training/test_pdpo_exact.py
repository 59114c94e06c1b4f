"""The trained loss and its gradient against P-DPO written out: duplicated sequences, float64."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import naive
from personal import assert_same_gradients, gradients, personalise, with_prior
from preferences import some_pairs, train_params
from prlhf.data.prompts import canonical_prompt
from prlhf.data.reference import text_key
from prlhf.models.base import BaseModel
from prlhf.models.personalized import PersonalizedLM
from prlhf.params import TrainParams
from prlhf.training.dataset import PreferenceCollator, PreferenceDataset, PreferenceExample
from prlhf.training.losses import pdpo_loss
from prlhf.training.trainer import conditions

PAIRS = some_pairs(5, weights=True)


def naive_loss(
    lm: PersonalizedLM,
    pairs: list[PreferenceExample],
    objective: TrainParams,
    texts: list[list[int]] | None = None,
) -> Tensor:
    """The weighted mean of the objective over pairs: four sequences a pair, one at a time.

    Args:
        texts: token ids of the text of each pair's user, for pairs whose prompts do not hold it.
    """
    embedding = naive.embedding_of(lm.user_model)
    embed = lm.lm.get_input_embeddings()
    total = torch.zeros((), dtype=torch.float64)
    for pair, text in zip(pairs, texts or [[]] * len(pairs), strict=True):
        terms = []
        for user in (pair.user_index, 0):
            known = [embedding(user), embed(torch.tensor(text)) if text else None]
            known = [part for part in known if part is not None]
            before = torch.cat(known) if known else None
            chosen, rejected = (
                naive.response_logp(lm.lm, before, pair.prompt, response)
                for response in (pair.chosen, pair.rejected)
            )
            h = (chosen - pair.ref_chosen) - (rejected - pair.ref_rejected)
            z, s = objective.beta * h, objective.label_smoothing
            clean, flipped = torch.log1p(torch.exp(-z)), torch.log1p(torch.exp(z))
            preference = {
                "sigmoid": (1 - s) * clean + s * flipped,
                "robust": ((1 - s) * clean - s * flipped) / (1 - 2 * s),
                "hinge": torch.clamp(1 - z, min=0),
                "ipo": (h - 0.5 / objective.beta) ** 2,
            }[objective.loss]
            tokens = len(pair.chosen)
            nll = -chosen / tokens
            fell = torch.clamp(pair.ref_chosen - chosen, min=0) / tokens
            terms.append(preference + objective.nll_coef * nll + objective.dpop_coef * fell)
        loss = objective.alpha * terms[0] + (1 - objective.alpha) * terms[1]
        if objective.alpha > 0:
            loss = loss + naive.prior(lm.user_model, pair.user_index)
        total = total + pair.weight * loss
    return total / sum(pair.weight for pair in pairs)


def our_loss(lm: PersonalizedLM, pairs: list[PreferenceExample], objective: TrainParams) -> Tensor:
    batch = PreferenceCollator(lm.pack, *conditions(lm, objective.alpha))(pairs)["batch"]
    batch = replace(
        batch, **{n: getattr(batch, n).double() for n in ("ref_chosen", "ref_rejected", "weight")}
    )
    losses = pdpo_loss(lm, batch, objective).loss
    assert losses.shape == (len(pairs),)
    return (batch.weight * losses).sum() / batch.weight.sum()


def exact(base: BaseModel, kind: str, max_user_text: int | None = None) -> PersonalizedLM:
    lm = naive.double(personalise(base, kind, max_user_text=max_user_text))
    with_prior(lm.user_model)
    return lm


def check(lm: PersonalizedLM, pairs: list[PreferenceExample], objective: TrainParams) -> None:
    ours, expected = our_loss(lm, pairs, objective), naive_loss(lm, pairs, objective)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    found, wanted = gradients(lm, ours), gradients(lm, expected)
    assert found
    assert_same_gradients(found, wanted, atol=1e-10)


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("kind", ["uniform", "individual", "cluster"])
def test_loss_and_gradient_of_a_batch(tiny_base: BaseModel, kind: str, shares: bool) -> None:
    lm = exact(tiny_base, kind)
    lm.shares_prompts = shares
    check(lm, PAIRS, train_params(alpha=0.3, beta=0.5, nll_coef=0.7, dpop_coef=0.4))


def stated_pairs(lm: PersonalizedLM, reference_text: bool) -> tuple[list[PreferenceExample], ...]:
    """Pairs as they are trained on, the same without their users' texts, and those texts' ids."""
    prompt = canonical_prompt("Why?")
    rows = [(1, "I am new."), (2, "I know it all, and yet."), (1, "I am new."), (3, None)]
    table = pd.DataFrame(
        {
            "user_index": [user for user, _ in rows],
            "user_text": [text for _, text in rows],
            "prompt": prompt,
            "chosen": ["Yes", "No", "So", "No"],
            "rejected": ["No", "Yes", "No, no", "Yes"],
            "weight": [1.0, 0.5, 2.0, 1.0],
        }
    )
    responses = sorted({*table["chosen"], *table["rejected"]})
    said = [None, *(text for _, text in rows[:2])]
    reference = {
        text_key(prompt, response, text): -20.0 - i - 3 * j
        for i, response in enumerate(responses)
        for j, text in enumerate(said)
    }
    pairs = PreferenceDataset(table, reference, lm.encoder, reference_text=reference_text)
    text_key_of = [text if reference_text else None for _, text in rows]
    asked = lm.base.tokenizer("<|start|>user\nWhy?<|end|>\n<|start|>assistant\n")["input_ids"]
    bare = [
        replace(
            pair,
            prompt=asked,
            ref_chosen=reference[text_key(prompt, row["chosen"], text)],
            ref_rejected=reference[text_key(prompt, row["rejected"], text)],
        )
        for pair, row, text in zip(pairs, table.to_dict("records"), text_key_of, strict=True)
    ]
    texts = [lm.base.tokenizer(f"{text}\n")["input_ids"] if text else [] for _, text in rows]
    return pairs, bare, texts


@pytest.mark.parametrize("reference_text", [True, False])
@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("kind", ["uniform", "individual", "cluster"])
def test_both_terms_read_what_the_user_says(
    tiny_base: BaseModel, kind: str, shares: bool, reference_text: bool
) -> None:
    """f_P(u) = [f_implicit(u_id) ; f_explicit(u_text)], and u_0 = (u_text, generic id)."""
    lm = exact(tiny_base, kind, max_user_text=40)
    lm.shares_prompts = shares
    pairs, bare, texts = stated_pairs(lm, reference_text)
    objective = train_params(alpha=0.3, beta=0.5, nll_coef=0.7, dpop_coef=0.4)
    ours, expected = our_loss(lm, pairs, objective), naive_loss(lm, bare, objective, texts)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    assert_same_gradients(gradients(lm, ours), gradients(lm, expected), atol=1e-10)
    without = naive_loss(lm, bare, objective)
    assert not torch.isclose(without, expected, rtol=1e-3)


@pytest.mark.parametrize("loss", naive.LOSSES)
def test_every_member_of_the_family(tiny_base: BaseModel, loss: str) -> None:
    lm = exact(tiny_base, "individual")
    check(lm, PAIRS[:2], train_params(alpha=0.6, beta=0.2, loss=loss, label_smoothing=0.1))


@settings(max_examples=6, phases=[Phase.generate])
@given(
    kind=st.sampled_from(["individual", "cluster"]),
    alpha=st.sampled_from([0.0, 0.25, 1.0]),
    beta=st.floats(0.05, 1.0),
    nll=st.sampled_from([0.0, 1.0]),
    count=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_any_batch(
    tiny_path, kind: str, alpha: float, beta: float, nll: float, count: int, seed: int
) -> None:
    from prlhf.models.base import load_base

    lm = exact(load_base(tiny_path, "float32"), kind)
    pairs = some_pairs(count, weights=True, seed=seed)
    check(lm, pairs, train_params(alpha=alpha, beta=beta, nll_coef=nll))


def test_both_conditions_of_every_pair_are_in_every_batch(tiny_base: BaseModel) -> None:
    lm = personalise(tiny_base)
    batch = PreferenceCollator(lm.pack, *conditions(lm, 0.5))(PAIRS)["batch"]
    users = [pair.user_index for pair in PAIRS]
    assert batch.packed.user_index.tolist() == [*users, *[0] * len(PAIRS)]
    assert len(batch) == len(PAIRS)


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, "generic"), (1.0, "user")])
def test_a_condition_without_weight_is_not_computed(
    tiny_base: BaseModel, alpha: float, expected: str
) -> None:
    lm = personalise(tiny_base)
    batch = PreferenceCollator(lm.pack, *conditions(lm, alpha))(PAIRS)["batch"]
    assert len(batch.packed.input_ids) == len(PAIRS)
    result = pdpo_loss(lm, batch, train_params(alpha=alpha, beta=0.3))
    assert {name for name in result.metrics if name.startswith("accuracy")} == {
        f"accuracy_{expected}"
    }


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_without_user_tokens_one_condition_stands_for_both(
    tiny_base: BaseModel, alpha: float
) -> None:
    """The uniform user model is DPO, whatever alpha."""
    lm = personalise(tiny_base, "uniform")
    assert conditions(lm, alpha) == (False, True)
    batch = PreferenceCollator(lm.pack, *conditions(lm, alpha))(PAIRS)["batch"]
    assert len(batch.packed.input_ids) == len(PAIRS)
    losses = pdpo_loss(lm, batch, train_params(alpha=alpha, beta=0.3)).loss
    scores = lm.score([pair.row(0) for pair in PAIRS], label="test").logps.view(-1, 2)
    for i, pair in enumerate(PAIRS):
        h = (scores[i, 0] - pair.ref_chosen) - (scores[i, 1] - pair.ref_rejected)
        expected = naive.preference_loss("sigmoid", float(h), 0.3, 0.0)
        assert losses[i].item() == pytest.approx(expected, rel=1e-4)


def test_alpha_of_zero_leaves_the_users_alone(tiny_base: BaseModel) -> None:
    lm = exact(tiny_base, "individual")
    found = gradients(lm, our_loss(lm, PAIRS, train_params(alpha=0.0, beta=0.5, nll_coef=1.0)))
    assert not found["user_model.offsets.weight"].any()
    assert found["user_model.shared"].any()
    assert any(slope.any() for name, slope in found.items() if "lora" in name)


def test_alpha_of_one_leaves_the_generic_user_alone(tiny_base: BaseModel) -> None:
    lm = naive.double(personalise(tiny_base, "cluster"))
    found = gradients(lm, our_loss(lm, PAIRS, train_params(alpha=1.0, beta=0.5, nll_coef=1.0)))
    assert not found["user_model.generic_weights"].any()
    assert found["user_model.weights.weight"][1:].any()
    assert found["user_model.centres"].any()


def test_only_the_users_of_the_batch_have_a_gradient(tiny_base: BaseModel) -> None:
    lm = exact(tiny_base, "individual")
    pairs = [replace(pair, user_index=2) for pair in PAIRS]
    found = gradients(lm, our_loss(lm, pairs, train_params(alpha=0.5, beta=0.5)))
    rows = found["user_model.offsets.weight"].abs().sum(1) > 0
    assert rows.tolist() == [False, False, True, False]


def test_metrics(tiny_base: BaseModel) -> None:
    lm = exact(tiny_base, "individual")
    objective = train_params(alpha=0.25, beta=0.5, nll_coef=1.0)
    batch = PreferenceCollator(lm.pack, True, True)(PAIRS)["batch"]
    metrics = pdpo_loss(lm, batch, objective).metrics
    embedding = naive.embedding_of(lm.user_model)
    for i, pair in enumerate(PAIRS):
        chosen = {}
        for name, user in (("user", pair.user_index), ("generic", 0)):
            logps = [
                naive.response_logp(lm.lm, embedding(user), pair.prompt, response).item()
                for response in (pair.chosen, pair.rejected)
            ]
            h = (logps[0] - pair.ref_chosen) - (logps[1] - pair.ref_rejected)
            assert float(metrics[f"margin_{name}"][i]) == pytest.approx(h, abs=1e-4)
            assert float(metrics[f"accuracy_{name}"][i]) == float(h > 0)
            chosen[name] = -logps[0] / len(pair.chosen)
        nll = 0.25 * chosen["user"] + 0.75 * chosen["generic"]
        assert float(metrics["nll"][i]) == pytest.approx(nll, rel=1e-6)
    assert not any(value.requires_grad for value in metrics.values())


def test_a_tie_counts_half(tiny_base: BaseModel) -> None:
    lm = personalise(tiny_base)
    pair = replace(PAIRS[0], rejected=PAIRS[0].chosen, ref_rejected=PAIRS[0].ref_chosen)
    lm.shares_prompts = False  # so that both are computed alike to the last bit
    batch = PreferenceCollator(lm.pack, True, True)([pair])["batch"]
    assert pdpo_loss(lm, batch, train_params(alpha=0.5, beta=0.3)).metrics[
        "accuracy_user"
    ].tolist() == [0.5]

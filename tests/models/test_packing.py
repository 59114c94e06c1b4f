"""Packed rows against separate sequences with full logits, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import naive
from personal import TOKENS, USERS, assert_same_gradients, gradients, personalise
from prlhf.models import personalized
from prlhf.models.base import BaseModel
from prlhf.models.packing import (
    PAD,
    PREFIX,
    Packed,
    Row,
    attention_mask,
    batches_by_length,
    bounded,
    pack,
    tree_mask,
)
from prlhf.models.personalized import PersonalizedLM

ids = st.integers(0, 257)
rows_strategy = st.lists(
    st.builds(
        Row,
        st.integers(0, len(USERS)),
        st.lists(ids, min_size=1, max_size=6),
        st.lists(st.lists(ids, min_size=1, max_size=5), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=3,
)

RAGGED = [
    Row(2, [5, 6, 7], [[8, 9, 10, 1], [11]]),
    Row(0, [12], [[13, 1], [14, 15], [16, 17, 18, 1]]),
    Row(1, [19, 20, 21, 22, 23], [[24]]),
]


@pytest.fixture(scope="module")
def models(tiny_path) -> dict[str, PersonalizedLM]:
    """A float64 model of each kind."""
    from prlhf.models.base import load_base

    return {
        kind: naive.double(personalise(load_base(tiny_path, "float32"), kind))
        for kind in ("uniform", "individual", "cluster")
    }


def naive_logps(lm: PersonalizedLM, rows: list[Row]) -> Tensor:
    embedding = naive.embedding_of(lm.user_model)
    return torch.stack(
        [
            naive.response_logp(lm.lm, embedding(row.user_index), row.prompt, response)
            for row in rows
            for response in row.responses
        ]
    )


def named(name: str) -> Callable[[str], str]:
    return lambda text: f"{name}: {text}"


def slopes(lm: PersonalizedLM, logps: Tensor) -> dict[str, Tensor]:
    """d (weighted sum of logps) / d (everything trainable)."""
    weights = torch.linspace(-1, 1.5, len(logps), dtype=logps.dtype)
    return gradients(lm, (logps * weights).sum())


@pytest.mark.parametrize("kind", ["uniform", "individual", "cluster"])
def test_a_packed_batch_equals_its_sequences_one_by_one(
    models: dict[str, PersonalizedLM], kind: str
) -> None:
    lm = models[kind]
    batch = lm.pack(RAGGED)
    assert batch.shared
    got = lm(batch)
    expected = naive_logps(lm, RAGGED)
    torch.testing.assert_close(got.logps, expected, rtol=1e-9, atol=1e-9)
    assert got.tokens.tolist() == [4, 1, 2, 2, 4, 1]

    found, wanted = slopes(lm, got.logps), slopes(lm, expected)
    assert any("lora_A" in name for name in found)
    assert any(name.startswith("user_model") for name in found) == (kind != "uniform")
    for name in found:
        assert wanted[name].any(), name
    assert_same_gradients(found, wanted, atol=1e-10)


@pytest.mark.parametrize("kind", ["individual", "cluster"])
@settings(max_examples=12, phases=[Phase.explicit, Phase.generate])
@given(rows=rows_strategy)
def test_any_shape_of_rows(models: dict[str, PersonalizedLM], kind: str, rows: list[Row]) -> None:
    lm = models[kind]
    got = lm(lm.pack(rows)).logps
    expected = naive_logps(lm, rows)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    found, wanted = slopes(lm, got), slopes(lm, expected)
    assert_same_gradients(found, wanted, atol=1e-9)


@pytest.mark.parametrize("kind", ["uniform", "individual", "cluster"])
def test_float32_agrees_to_its_rounding(tiny_base: BaseModel, kind: str) -> None:
    lm = personalise(tiny_base, kind)
    expected = naive_logps(naive.double(lm), RAGGED)
    torch.testing.assert_close(lm(lm.pack(RAGGED)).logps.double(), expected, rtol=1e-5, atol=1e-4)


def test_without_a_tree_mask_rows_are_split_and_nothing_changes(tiny_base: BaseModel) -> None:
    lm = naive.double(personalise(tiny_base))
    shared = lm(lm.pack(RAGGED), features=True)
    lm.shares_prompts = False
    batch = lm.pack(RAGGED)
    assert not batch.shared
    assert len(batch.input_ids) == 6
    apart = lm(batch, features=True)
    torch.testing.assert_close(apart.logps, shared.logps)
    torch.testing.assert_close(apart.features, shared.features)
    assert torch.equal(apart.tokens, shared.tokens)


def test_nothing_leaks_from_padding_other_rows_or_other_responses(
    models: dict[str, PersonalizedLM],
) -> None:
    """Whatever stands beside a response, its log-probability stays the same."""
    lm = models["individual"]
    alone = lm(lm.pack([Row(2, [5, 6, 7], [[8, 9]])])).logps[0]
    neighbours = [
        [Row(2, [5, 6, 7], [[8, 9], [30, 31, 32]])],
        [Row(2, [5, 6, 7], [[30, 31, 32], [8, 9]])],
        [Row(2, [5, 6, 7], [[8, 9]]), Row(1, [40] * 20, [[41] * 9, [42]])],
    ]
    for rows, at in zip(neighbours, (0, 1, 0), strict=True):
        torch.testing.assert_close(lm(lm.pack(rows)).logps[at], alone, rtol=1e-10, atol=1e-10)


def test_padding_may_hold_anything(models: dict[str, PersonalizedLM]) -> None:
    from dataclasses import replace

    lm = models["cluster"]
    batch = lm.pack(RAGGED)
    filled = torch.where(batch.segments == PAD, 200, batch.input_ids)
    moved = torch.where(batch.segments == PAD, 3, batch.positions)
    other = replace(batch, input_ids=filled, positions=moved)
    assert not torch.equal(batch.input_ids, filled)
    assert torch.equal(lm(batch).logps, lm(other).logps)


def test_features_are_the_mean_state_that_predicts_each_response(tiny_base: BaseModel) -> None:
    lm = naive.double(personalise(tiny_base))
    got = lm(lm.pack(RAGGED), features=True).features
    embedding, embed = naive.embedding_of(lm.user_model), lm.lm.get_input_embeddings()
    i = 0
    for row in RAGGED:
        for response in row.responses:
            inputs = torch.cat(
                [embedding(row.user_index), embed(torch.tensor([*row.prompt, *response]))]
            )
            states = lm.causal_lm.base_model(inputs_embeds=inputs[None]).last_hidden_state[0]
            before = TOKENS + len(row.prompt)
            mean = states[before - 1 : before - 1 + len(response)].mean(0)
            torch.testing.assert_close(got[i], mean.float(), rtol=1e-5, atol=1e-6)
            i += 1
    assert i == len(got)


def test_score_gives_results_in_order_whatever_the_batches(tiny_base: BaseModel) -> None:
    lm = personalise(tiny_base)
    rows = [
        Row(i % 4, list(range(2, 3 + i)), [[7 + i, 8], [9] * (1 + (3 * i) % 5)]) for i in range(7)
    ]
    expected = naive_logps(naive.double(lm), rows).float()
    for most in (1, 3, 100):
        scores = lm.score(rows, label="test", features=True, max_rows=most, max_positions=40)
        torch.testing.assert_close(scores.logps, expected, rtol=1e-5, atol=1e-4)
        assert scores.tokens.tolist() == [len(r) for row in rows for r in row.responses]
        assert scores.features.shape == (14, lm.base.hidden_size)
        assert not scores.logps.requires_grad


def test_rows_are_encoded_when_it_is_their_turn(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = personalise(tiny_base)
    rows = [Row(i % 4, [5 + i], [[7 + i, 8]] * (1 + i % 2)) for i in range(8)]
    encoded: list[Row] = []
    ahead = []

    def encode() -> Iterator[Row]:
        for row in rows:
            encoded.append(row)
            yield row

    collect = lm.collect

    def watch(*arguments: Any, **options: Any) -> personalized.Scores:
        ahead.append(len(encoded))
        return collect(*arguments, **options)

    expected = lm.score(rows, label="", features=True)
    monkeypatch.setattr(personalized, "CHUNK", 3)
    monkeypatch.setattr(lm, "collect", watch)
    got = lm.score(encode(), label="", total=8, features=True)
    assert ahead == [3, 6, 8]
    for name in ("logps", "tokens", "last", "features"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name))
    assert got.features.dtype == torch.float16
    assert len(lm.score([], label="", features=True).features) == 0


def test_a_prompt_with_very_many_responses(tiny_base: BaseModel) -> None:
    lm = personalise(tiny_base)
    row = Row(1, [5, 6], [[7 + i % 50] * 30 for i in range(60)])
    got = lm.score([row], label="test").logps
    expected = lm.score(row.split(), label="test").logps
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)


def test_the_layout_of_a_batch() -> None:
    batch = pack([Row(3, [5, 6], [[7, 8, 1], [9, 1]]), Row(0, [4], [[2]])], user_tokens=2)
    # [u u 5 6 | 7 8 | 9], the last token of a response being predicted but never read
    assert batch.input_ids.tolist() == [[0, 0, 5, 6, 7, 8, 9], [0, 0, 4, 0, 0, 0, 0]]
    assert batch.positions.tolist()[0] == [0, 1, 2, 3, 4, 5, 4]
    assert batch.positions.tolist()[1][:3] == [0, 1, 2]
    assert batch.segments.tolist() == [
        [PREFIX] * 4 + [1, 1, 2],
        [PREFIX] * 3 + [PAD] * 4,
    ]
    assert batch.user_index.tolist() == [3, 0]
    assert batch.predictors.tolist() == [3, 4, 5, 3, 6, 7 + 2]
    assert batch.targets.tolist() == [7, 8, 1, 9, 1, 2]
    assert batch.owners.tolist() == [0, 0, 0, 1, 1, 2]
    assert batch.tokens.tolist() == [3, 2, 1]
    assert batch.shared


def test_the_tree_mask() -> None:
    segments = torch.tensor([[PREFIX, PREFIX, 1, 1, 2, PAD, PAD]])
    assert tree_mask(segments)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]


def test_a_batch_of_single_responses_needs_no_tree_mask() -> None:
    batch = pack([Row(0, [5, 6], [[7, 8]]), Row(0, [4], [[2]])], user_tokens=0)
    assert not batch.shared
    assert attention_mask(batch, torch.float32).tolist() == [[1, 1, 1], [1, 0, 0]]


def test_the_tree_mask_is_additive_and_finite() -> None:
    batch = pack(RAGGED, user_tokens=2)
    mask = attention_mask(batch, torch.bfloat16)
    assert mask.dtype == torch.bfloat16
    assert mask.shape == (3, 1, *[batch.input_ids.shape[1]] * 2)
    assert torch.isfinite(mask).all()
    assert torch.equal(mask == 0, tree_mask(batch.segments))


@pytest.mark.parametrize("row", [Row(0, [], [[1]]), Row(0, [5], [[1], []])])
def test_empty_texts_are_refused(row: Row) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        pack([row], user_tokens=0)


def test_moving_a_batch_keeps_all_of_it() -> None:
    batch = pack(RAGGED, user_tokens=2)
    moved = batch.to("cpu")
    assert isinstance(moved, Packed)
    for field in fields(Packed):
        one, other = getattr(batch, field.name), getattr(moved, field.name)
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@given(
    st.lists(st.integers(1, 50), max_size=40),
    st.integers(1, 6),
    st.integers(1, 120),
)
def test_batches_by_length_cover_everything_once_within_bounds(
    lengths: list[int], max_rows: int, max_positions: int
) -> None:
    batches = batches_by_length(lengths, max_rows=max_rows, max_positions=max_positions)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch, most in zip(batches, longest, strict=True):
        assert 1 <= len(batch) <= max_rows
        assert len(batch) == 1 or len(batch) * most <= max_positions


@given(rows_strategy, st.integers(1, 12))
def test_bounded_rows_hold_the_same_work_in_the_same_order(rows: list[Row], most: int) -> None:
    parts = bounded(rows, most)
    flat = [(r.user_index, r.prompt, response) for r in rows for response in r.responses]
    assert [(r.user_index, r.prompt, response) for r in parts for response in r.responses] == flat
    for part in parts:
        assert len(part.responses) == 1 or sum(map(len, part.responses)) <= most

"""Batches of similar length: every pair still once an epoch, in every run alike, little padded."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from personal import personalise
from preferences import arguments, sections, some_pairs
from prlhf.models.base import BaseModel
from prlhf.models.personalized import PersonalizedLM
from prlhf.training.finetune import fit
from prlhf.training.order import WINDOW, PreferenceSampler, bucketed, epoch_order
from prlhf.training.trainer import PDPOTrainer

PAIRS = some_pairs(13, weights=True)


def lengths(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(60, 141, (count,), generator=generator).tolist()


def padding(order: list[int], tokens: list[int], batch: int) -> float:
    """Share of the positions of an epoch that are padding."""
    batches = [order[i : i + batch] for i in range(0, len(order), batch)]
    computed = sum(len(b) * max(tokens[pair] for pair in b) for b in batches)
    return 1 - sum(tokens) / computed


@given(
    count=st.integers(1, 300),
    batch=st.integers(1, 9),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 3),
)
def test_every_pair_once_and_near_its_place(count: int, batch: int, seed: int, epoch: int) -> None:
    order = epoch_order(count, seed, epoch)
    got = bucketed(order, lengths(count, seed), batch, seed, epoch)
    assert sorted(got) == list(range(count))
    window = WINDOW * batch
    whole = count - count % batch
    for start in range(0, whole, window):
        end = min(start + window, whole)
        assert sorted(got[start:end]) == sorted(order[start:end])
    assert got[whole:] == order[whole:]


def test_batches_of_a_window_do_not_overlap_in_length() -> None:
    tokens = lengths(128)
    order = bucketed(epoch_order(128, 1, 0), tokens, 4, 1, 0)
    spans = sorted(
        (min(batch), max(batch))
        for batch in ([tokens[pair] for pair in order[i : i + 4]] for i in range(0, 128, 4))
    )
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))


@pytest.mark.parametrize(("batch", "before"), [(4, 0.18), (16, 0.25)])
def test_little_is_padded(batch: int, before: float) -> None:
    tokens = lengths(2048)
    order = epoch_order(2048, 1, 0)
    assert padding(order, tokens, batch) > before
    assert padding(bucketed(order, tokens, batch, 1, 0), tokens, batch) < 0.02


def test_lengths_do_not_decide_when_a_batch_comes() -> None:
    """Long batches come as early as short ones, over the epochs."""
    tokens = lengths(128)
    places = torch.zeros(128)
    for epoch in range(200):
        order = bucketed(epoch_order(128, 2, epoch), tokens, 4, 2, epoch)
        places[torch.tensor(order)] += torch.arange(128) / 200
    correlation = torch.corrcoef(torch.stack([places, torch.tensor(tokens).float()]))[0, 1]
    assert abs(float(correlation)) < 0.3
    # A pair's mean place is the middle: 5 standard deviations of a uniform place, of 200 draws.
    assert (places - 63.5).abs().max().item() < 5 * 37 / 200**0.5


def test_company_changes_from_epoch_to_epoch() -> None:
    tokens = lengths(256)
    found = []
    for epoch in (0, 1, 0):
        order = list(
            PreferenceSampler([1] * 256, seed=3, epoch=lambda e=epoch: e, lengths=tokens, batch=4)
        )
        found.append({frozenset(v.position for v in order[i : i + 4]) for i in range(0, 256, 4)})
    assert found[0] == found[2]
    assert len(found[0] & found[1]) < 8


def run(lm: PersonalizedLM, where: Path, **changes: Any) -> pd.DataFrame:
    return fit(
        PDPOTrainer,
        copy.deepcopy(lm),
        *sections(**{"micro_batch_size": 2, "length_bucketing": True, **changes}),
        {"train": PAIRS, "validation": PAIRS[:3]},
        checkpoints=where,
        seed=5,
        label="test",
    ).curves


def test_training_sees_batches_of_similar_length(tiny_base: BaseModel, tmp_path: Path) -> None:
    seen: list[list[int]] = []

    class Watching(PDPOTrainer):
        def compute_loss(self, model, inputs, *args, **options):
            seen.append(inputs["batch"].ref_chosen.tolist())
            return super().compute_loss(model, inputs, *args, **options)

    train, params = sections(micro_batch_size=2, length_bucketing=True)
    lm = personalise(tiny_base)
    trainer = Watching(
        lm,
        train,
        params,
        arguments=arguments(params, tmp_path, pairs=len(PAIRS), seed=5, watch=False),
        train_pairs=PAIRS,
        eval_pairs=[],
    )
    trainer.train()
    order = bucketed(epoch_order(13, 5, 0), [pair.length for pair in PAIRS], 2, 5, 0)
    expected = [[PAIRS[pair].ref_chosen for pair in order[i : i + 2]] for i in range(0, 13, 2)]
    assert seen == expected
    assert seen != [
        [PAIRS[p].ref_chosen for p in epoch_order(13, 5, 0)[i : i + 2]] for i in range(7)
    ]


def test_it_is_a_choice(tiny_base: BaseModel, tmp_path: Path) -> None:
    lm = personalise(tiny_base)
    curves = [
        run(lm, tmp_path / str(i), length_bucketing=bucketing)
        for i, bucketing in enumerate((True, True, False))
    ]
    pd.testing.assert_frame_equal(curves[0], curves[1])
    assert not curves[0].equals(curves[2])

"""Flex attention and compiled models compute what the plain model does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.integrations.flex_attention as flex_module
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask, flex_attention

import prlhf.training.attention as kernels_module
from personal import gradients, personalise
from preferences import sections, some_pairs, train_params
from prlhf.infra.errors import UserError
from prlhf.models.base import BaseModel
from prlhf.models.packing import FLEX, block_mask, tree_mask
from prlhf.models.personalized import PersonalizedLM
from prlhf.training.attention import choose_flex
from prlhf.training.dataset import PreferenceCollator
from prlhf.training.finetune import fit
from prlhf.training.losses import pdpo_loss
from prlhf.training.trainer import PDPOTrainer

PAIRS = some_pairs(5, weights=True)


def differentiable_flex(
    query: Tensor, key: Tensor, value: Tensor, *, score_mod: Callable[..., Tensor], **options: Any
) -> Tensor:
    """Flex attention's definition written out: it has no backward pass on CPUs."""
    mask = options["block_mask"]
    rows, heads, length, width = query.shape
    shared = heads // key.shape[1]
    key, value = (tensor.repeat_interleave(shared, dim=1) for tensor in (key, value))
    scores = query @ key.transpose(-1, -2) * (options["scale"] or width**-0.5)
    index = [torch.arange(n) for n in (rows, heads, length, length)]
    scores = score_mod(scores, *torch.meshgrid(*index, indexing="ij"))
    visible = create_mask(mask.mask_mod, rows, 1, length, length, device="cpu")
    return torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1) @ value


def without_compiling(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    options.pop("training", None)
    return flex_attention(query, key, value, **options)


def loss_of(lm: PersonalizedLM) -> Tensor:
    batch = PreferenceCollator(lm.pack, True, True)(PAIRS)["batch"]
    assert batch.packed.shared
    return pdpo_loss(lm, batch, train_params(alpha=0.3, beta=0.5, nll_coef=0.7)).loss.mean()


def test_the_block_mask_is_the_tree_mask(tiny_base: BaseModel) -> None:
    lm = personalise(tiny_base)
    batch = lm.pack([pair.row(pair.user_index) for pair in PAIRS])
    rows, length = batch.segments.shape
    blocks = block_mask(batch.segments)
    assert blocks.shape == (rows, 1, length, length)
    found = create_mask(blocks.mask_mod, rows, 1, length, length, device="cpu")
    assert torch.equal(found, tree_mask(batch.segments))


def test_blocks_between_responses_are_skipped() -> None:
    """Prompt, and three responses, of 128 tokens each: no response looks at another."""
    segments = torch.arange(4).repeat_interleave(128)[None]
    assert block_mask(segments).to_dense()[0, 0].tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 0, 1, 0],
        [1, 0, 0, 1],
    ]


@torch.no_grad()
def test_flex_attention_gives_the_same_loss(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = personalise(tiny_base)
    expected = loss_of(lm)
    monkeypatch.setattr(flex_module, "compile_friendly_flex_attention", without_compiling)
    lm.causal_lm.set_attn_implementation(FLEX)
    torch.testing.assert_close(loss_of(lm), expected, rtol=1e-5, atol=1e-5)


def test_flex_attention_gives_the_same_gradient(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = personalise(tiny_base)
    expected = loss_of(lm)
    wanted = gradients(lm, expected)
    used: list[int] = []

    def attention(*args: Any, **options: Any) -> Tensor:
        used.append(1)
        return differentiable_flex(*args, **options)

    monkeypatch.setattr(flex_module, "compile_friendly_flex_attention", attention)
    assert choose_flex(lm, "flex")
    used.clear()
    loss = loss_of(lm)
    assert len(used) == 2  # layers
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for name, slope in gradients(lm, loss).items():
        torch.testing.assert_close(slope, wanted[name], rtol=1e-3, atol=1e-5)


def test_flex_attention_where_it_does_not_work(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(flex_module, "compile_friendly_flex_attention", without_compiling)
    lm = personalise(tiny_base)
    plain = lm.causal_lm.config._attn_implementation
    assert not choose_flex(lm, "auto")
    assert capsys.readouterr().err == ""
    # PyTorch's has no backward pass on CPUs.
    with pytest.raises(UserError, match="no flex attention: .*backward") as caught:
        choose_flex(lm, "flex")
    assert caught.value.where == "optimizer.attention"
    assert lm.causal_lm.config._attn_implementation == plain
    # Chosen by itself, it gives way, and says so.
    monkeypatch.setattr(kernels_module, "has_gpu", lambda lm: True)
    assert not choose_flex(lm, "auto")
    assert "computing without it" in capsys.readouterr().err
    assert lm.causal_lm.config._attn_implementation == plain
    lm.shares_prompts = False
    with pytest.raises(UserError, match="takes no tree mask"):
        choose_flex(lm, "flex")


def test_flex_attention_that_computes_something_else_is_not_used(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        return differentiable_flex(query, key, value, **options) + 1

    monkeypatch.setattr(flex_module, "compile_friendly_flex_attention", wrong)
    with pytest.raises(UserError, match="something else"):
        choose_flex(personalise(tiny_base), "flex")


@pytest.mark.slow
def test_a_compiled_model_trains_to_the_same_weights(
    tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels_module, "BACKEND", "aot_eager")
    start = personalise(tiny_base, "cluster")
    found = []
    for compiled in (False, True):
        lm = copy.deepcopy(start)
        fit(
            PDPOTrainer,
            lm,
            *sections(compile=compiled, max_steps=2, batch_size=2, micro_batch_size=2),
            {"train": PAIRS, "validation": []},
            checkpoints=tmp_path / str(compiled),
            seed=1,
            label="test",
        )
        found.append({n: p.detach() for n, p in lm.named_parameters() if p.requires_grad})
        assert lm.causal_lm.base_model._compiled_call_impl is None
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], rtol=1e-4, atol=1e-6)

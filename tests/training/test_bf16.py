"""What bfloat16 weights of the base model change: rounding, and no more than stated here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from personal import gradients, personalise
from preferences import some_pairs, train_params
from prlhf.models.base import load_base
from prlhf.training.dataset import PreferenceCollator
from prlhf.training.losses import PairLosses, pdpo_loss

LOSS = 2e-3  # of the loss of a pair; measured: 2e-4
MARGIN = 0.05  # nats; measured: 0.012
GRADIENT = 0.05  # of the norm of a part's gradient; measured: 0.023

PAIRS = some_pairs(8, weights=True)


def computed(path: Path, dtype: str, kind: str) -> tuple[PairLosses, dict[str, Tensor]]:
    lm = personalise(load_base(path, dtype), kind)
    # Whatever the base model's precision: what is trained is float32.
    assert {p.dtype for p in lm.parameters() if p.requires_grad} == {torch.float32}
    assert lm.causal_lm.get_input_embeddings().weight.dtype == getattr(torch, dtype)
    batch = PreferenceCollator(lm.pack, kind != "uniform", True)(PAIRS)["batch"]
    result = pdpo_loss(lm, batch, train_params(alpha=0.5, beta=0.1, nll_coef=1.0))
    return result, gradients(lm, result.loss.mean())


@pytest.mark.parametrize("kind", ["uniform", "individual", "cluster"])
def test_loss_and_gradient_in_bfloat16(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("PRLHF_DEVICE", "cpu")
    exact, wanted = computed(tiny_path, "float32", kind)
    rounded, found = computed(tiny_path, "bfloat16", kind)
    assert rounded.loss.dtype == torch.float32
    torch.testing.assert_close(rounded.loss, exact.loss, rtol=LOSS, atol=0.0)
    margins = [name for name in exact.metrics if name.startswith("margin")]
    for name in margins:
        torch.testing.assert_close(
            rounded.metrics[name], exact.metrics[name], rtol=0.0, atol=MARGIN
        )
        assert exact.metrics[name].abs().max() > 20 * MARGIN
    for part in ("lora_A", "lora_B", *(["user_model"] if kind != "uniform" else [])):
        one, other = (
            torch.cat([slope.flatten() for name, slope in slopes.items() if part in name])
            for slopes in (wanted, found)
        )
        assert (one - other).norm() < GRADIENT * one.norm(), part
        assert not torch.equal(one, other), part

"""A tiny personalised model whose every part does something."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import naive
from prlhf.models.base import BaseModel, Encoder
from prlhf.models.lora import add_lora
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.start import Prior
from prlhf.models.user_model import UserModel, build
from prlhf.params import LoraParams

USERS = ["ann", "bob", "cyd"]
TOKENS = 2
START: dict[str, Any] = {
    "tokens": TOKENS,
    "clusters": 2,
    "init_scale": 0.7,
    "weights_spread": 1.5,
    "offset_spread": 0.6,
    "generic_pull": 0.1,
    "seed": 3,
}
"""Options of `Pretrained`."""

torch.set_num_threads(1)  # more only cost time at this size


def enliven(model: PreTrainedModel, factor: float = 6.0) -> PreTrainedModel:
    """Make every layer matter: as initialised, each position mostly repeats its own token."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and not any(part in name for part in ("embed", "wte", "wpe")):
                weight.mul_(factor)
    return model


def random_user_model(kind: str, dim: int, *, scale: float = 0.5, seed: int = 0) -> UserModel:
    """Three users whose embeddings all differ; the tables keep their row 0 at zero."""
    options = {} if kind == "uniform" else {"clusters": 3}
    model = build(USERS, {"kind": kind, "tokens": TOKENS, "dim": dim, **options})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        for table in model.sparse_parameters():
            table[0] = 0
        if kind == "individual":
            model.weights.copy_(2 * torch.randn(model.weights.shape, generator=generator))
    return model


def with_prior(model: UserModel) -> UserModel:
    """The model itself, with a prior that is felt (see `naive.prior`), at some distance from it."""
    model.set_prior(
        Prior(
            torch.tensor(naive.PAIRS),
            weights_spread=naive.WEIGHTS_SPREAD,
            offset_spread=naive.OFFSET_SPREAD,
            generic_pull=naive.GENERIC_PULL,
        )
    )
    if model.kind == "cluster":
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            model.starts.add_(torch.randn(model.starts.shape, generator=generator))
    return model


def randomise_adapter(lm: PersonalizedLM, seed: int = 0) -> None:
    """Fresh adapters are the identity: give B a value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in lm.lm.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def personalise(
    base: BaseModel,
    kind: str = "individual",
    *,
    lora: bool = True,
    dropout: float = 0.0,
    max_user_text: int | None = None,
) -> PersonalizedLM:
    """`base` behind a random user model and, on request, a random LoRA adapter, in eval mode."""
    model = base.model
    if lora:
        model = add_lora(
            base.model,
            LoraParams(r=2, alpha=4, dropout=dropout, targets="auto"),
            base_name="tiny",
            seed=1,
        )
    encoder = Encoder(base.chat, 64, 32, max_user_text)
    lm = PersonalizedLM(base, model, random_user_model(kind, base.hidden_size), encoder)
    if lora:
        randomise_adapter(lm)
    return lm.eval()


def gradients(lm: PersonalizedLM, value: Tensor) -> dict[str, Tensor]:
    """d value / d (everything trainable), dense, zero where there is none."""
    named = {name: p for name, p in lm.named_parameters() if p.requires_grad}
    slopes = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if slope is None else slope.to_dense()
        for (name, p), slope in zip(named.items(), slopes, strict=True)
    }


def assert_same_gradients(
    found: dict[str, Tensor], wanted: dict[str, Tensor], *, atol: float
) -> None:
    """Every gradient equals the wanted one; a failure names the parameter."""
    for name in found:
        torch.testing.assert_close(
            found[name],
            wanted[name],
            rtol=1e-8,
            atol=atol,
            msg=lambda text, name=name: f"{name}: {text}",
        )

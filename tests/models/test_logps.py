"""Token log-probabilities against a log-softmax of full logits and plain autograd."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from prlhf.infra.errors import UserError
from prlhf.models.logps import check_head, softcap_of, sum_by_owner, token_logps

DIM, VOCABULARY = 6, 11
SMALL = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


class Head(nn.Linear):
    """An output layer that the package does not know from the inside."""


def case(
    positions: int, *, head: type[nn.Linear] = nn.Linear, bias: bool = True, dtype=torch.float64
) -> tuple[torch.Tensor, nn.Linear, torch.Tensor]:
    generator = torch.Generator().manual_seed(positions)
    hidden = torch.randn(positions, DIM, dtype=dtype, generator=generator).requires_grad_()
    layer = head(DIM, VOCABULARY, bias=bias).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    targets = torch.randint(0, VOCABULARY, (positions,), generator=generator)
    return hidden, layer, targets


def plain(
    hidden: torch.Tensor, head: nn.Linear, targets: torch.Tensor, softcap: float | None
) -> torch.Tensor:
    logits = hidden @ head.weight.T
    if head.bias is not None:
        logits = logits + head.bias
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logps = logits - torch.log(torch.exp(logits).sum(1, keepdim=True))
    return torch.stack([logps[i, t] for i, t in enumerate(targets.tolist())])


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["frozen", "trainable", "unknown"])
@settings(max_examples=10)
@given(positions=st.integers(1, 9), chunk=st.integers(1, 10))
def test_values_and_gradients(
    kind: str, bias: bool, softcap: float | None, positions: int, chunk: int
) -> None:
    hidden, head, targets = case(
        positions, head=Head if kind == "unknown" else nn.Linear, bias=bias
    )
    head.requires_grad_(kind == "trainable")
    wanted = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    weights = torch.linspace(-1, 2, positions, dtype=torch.float64)

    got = token_logps(hidden, head, targets, chunk=chunk, softcap=softcap)
    expected = plain(hidden, head, targets, softcap)
    torch.testing.assert_close(got, expected)
    for one, other in zip(
        torch.autograd.grad((got * weights).sum(), wanted),
        torch.autograd.grad((expected * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_gradcheck_of_the_frozen_head() -> None:
    hidden, head, targets = case(5)
    head.requires_grad_(False)
    assert torch.autograd.gradcheck(lambda h: token_logps(h, head, targets, chunk=2), hidden)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_float32_and_gradients_of_the_inputs_type(dtype: torch.dtype) -> None:
    hidden, head, targets = case(4, dtype=dtype)
    head.requires_grad_(False)
    got = token_logps(hidden, head, targets)
    assert got.dtype == torch.float32
    (slope,) = torch.autograd.grad(got.sum(), hidden)
    assert slope.dtype == dtype
    exact = hidden.detach().double().requires_grad_()
    expected = plain(exact, head.double(), targets, None)
    (exact_slope,) = torch.autograd.grad(expected.sum(), exact)
    precision = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(got.double(), expected, rtol=precision, atol=precision)
    torch.testing.assert_close(slope.double(), exact_slope, rtol=precision, atol=precision)


def test_nothing_is_recorded_without_gradients() -> None:
    hidden, head, targets = case(4)
    with torch.no_grad():
        got = token_logps(hidden, head, targets, chunk=3)
    assert not got.requires_grad
    torch.testing.assert_close(got, plain(hidden, head, targets, None).detach())


@pytest.mark.parametrize("frozen", [True, False])
def test_logits_of_the_whole_batch_never_exist(frozen: bool) -> None:
    """The largest tensor that a pass makes holds the logits of one chunk."""
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.numel())
            return out

    hidden, head, targets = case(40)
    head.requires_grad_(not frozen)
    with Watch():
        token_logps(hidden, head, targets, chunk=4).sum().backward()
    assert max(sizes) <= max(4 * VOCABULARY, hidden.numel())


def test_sum_by_owner() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0])
    assert sum_by_owner(values, torch.tensor([0, 2, 2, 0]), 4).tolist() == [9, 0, 6, 0]


def test_a_softcap_is_read_from_the_model() -> None:
    model = Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=3.0))
    assert softcap_of(model) == 3.0
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(40)  # so that the bound is felt
    check_head(model.eval())
    uncapped = copy.deepcopy(model)
    uncapped.config.final_logit_softcapping = None
    ids = torch.arange(8)[None]
    assert not torch.allclose(model(ids).logits, uncapped(ids).logits, atol=0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=8.0)),
        lambda: CohereForCausalLM(CohereConfig(**SMALL, pad_token_id=0, logit_scale=0.1)),
    ],
)
def test_models_that_scale_their_logits_are_refused(make) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)  # as far from uniform as a trained model
    with pytest.raises(UserError, match=f"{model.config.model_type} model computes its logits"):
        check_head(model)

"""How a model computes while it is trained: which attention, and whether it is compiled.

None of it changes what is computed beyond rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from prlhf.errors import UserError
from prlhf.models.logps import agree
from prlhf.models.packing import FLEX, Row, hidden_states
from prlhf.models.personalized import PersonalizedLM
from prlhf.progress import say

if TYPE_CHECKING:
    from prlhf.params.training import FitParams

BACKEND = "inductor"
"""What `torch.compile` hands graphs to."""


@contextmanager
def kernels(lm: PersonalizedLM, params: FitParams, *, where: str, label: str) -> Iterator[None]:
    """Compute as `attention` and `compile` say, and as before afterwards.

    Args:
        lm: what is trained.
        params: how to train.
        where: the section of `params.yaml` that says so.
        label: shown with what is said.

    Raises:
        UserError: the model or the device has no `flex` attention, and it is asked for by name.
    """
    model = lm.causal_lm
    before = model.config._attn_implementation
    body = cast(nn.Module, model.base_model)
    if choose_flex(lm, params.attention, where=f"{where}.attention"):
        say(f"{label}: attention in blocks (flex)")
    if params.compile:
        # Every batch has another length: without `dynamic` each would be compiled for itself.
        body.compile(backend=BACKEND, dynamic=True)
        say(f"{label}: the model is compiled in the first steps, which take longer")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        body._compiled_call_impl = None


def choose_flex(lm: PersonalizedLM, wanted: str, *, where: str) -> bool:
    """Switch a model to flex attention if that is wanted and works; tell whether it did.

    Under the tree mask half of a row's attention and more is empty. Flex attention skips empty
    blocks, where other kernels compute them from a mask as large as the attention matrix.

    Args:
        lm: the personalised model.
        wanted: `sdpa`, `flex` or `auto`: flex on a GPU, if the model has it.
        where: the key that says so, for errors.

    Raises:
        UserError: `flex` is wanted and does not work.
    """
    if wanted == "sdpa" or (wanted == "auto" and not has_gpu(lm)):
        return False
    model = lm.causal_lm
    before = model.config._attn_implementation
    problem = None
    if not lm.shares_prompts:
        problem = "the model takes no tree mask"
    elif not model._supports_flex_attn:
        problem = f"a {model.config.model_type} model has none"
    else:
        expected = _probe(lm)
        try:
            model.set_attn_implementation(FLEX)
            found = _probe(lm)
            pairs = zip(expected, found, strict=True)
            if not all(agree(one, other, one.dtype) for one, other in pairs):
                problem = "it computes something else here"
        except (RuntimeError, ValueError, TypeError) as error:
            problem = (str(error).strip() or type(error).__name__).splitlines()[0]
    if problem is None:
        return True
    model.set_attn_implementation(before)
    if wanted == "flex":
        raise UserError(f"no flex attention: {problem}", where=where, fix="use auto")
    say(f"no flex attention, computing without it: {problem}")
    return False


def has_gpu(lm: PersonalizedLM) -> bool:
    """Whether the model computes on a GPU."""
    return lm.device.type == "cuda"


def _probe(lm: PersonalizedLM) -> tuple[Tensor, Tensor]:
    """Hidden states of a small row that shares its prompt, and their slope at its embeddings."""
    embed = lm.causal_lm.get_input_embeddings()
    ids = [i % embed.weight.shape[0] for i in range(3, 12)]
    batch = lm.pack([Row(0, ids[:3], [ids[3:6], ids[6:9]])]).to(lm.device)
    embeds = embed(batch.input_ids).detach().requires_grad_()
    with torch.enable_grad():
        hidden = hidden_states(lm.causal_lm, embeds, batch)
        (slope,) = torch.autograd.grad(hidden.float().pow(2).mean(), embeds)
    return hidden.detach(), slope

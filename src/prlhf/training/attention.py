"""How a model computes while it is trained: kind of attention, compilation.

The results are the same up to rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, cast

import torch
from torch import Tensor, nn

from prlhf.infra.errors import UserError
from prlhf.infra.progress import say
from prlhf.models.logps import agree
from prlhf.models.packing import FLEX, Row, hidden_states
from prlhf.models.personalized import PersonalizedLM
from prlhf.params import OptimizerParams

BACKEND = "inductor"
"""Of `torch.compile`."""

WHERE: Final = "optimizer.attention"


@contextmanager
def kernels(lm: PersonalizedLM, params: OptimizerParams, *, label: str) -> Iterator[None]:
    """Inside the block, compute as `optimizer.attention` and `optimizer.compile` say.

    Raises:
        UserError: `flex` attention is asked for by name, and the model or the device has none.
    """
    model = lm.causal_lm
    before = model.config._attn_implementation
    body = cast(nn.Module, model.base_model)
    if choose_flex(lm, params.attention):
        say(f"{label}: attention in blocks (flex)")
    if params.compile:
        # Every batch has another length: without `dynamic` each length would be compiled.
        body.compile(backend=BACKEND, dynamic=True)
        say(f"{label}: the model is compiled in the first steps, which take longer")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        body._compiled_call_impl = None


def choose_flex(lm: PersonalizedLM, wanted: str) -> bool:
    """Switch a model to flex attention if that is wanted and works; tell whether it did.

    Under the tree mask, half of a row's attention matrix or more is empty. Flex attention skips
    empty blocks, whereas other kernels compute them, from a mask as large as the matrix.

    Args:
        lm: the personalised model.
        wanted: `sdpa`, `flex` or `auto`: flex on a GPU, if the model has it.

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
        raise UserError(f"no flex attention: {problem}", where=WHERE, fix="use auto")
    say(f"no flex attention, computing without it: {problem}")
    return False


def has_gpu(lm: PersonalizedLM) -> bool:
    """Whether the model computes on a GPU."""
    return lm.device.type == "cuda"


def _probe(lm: PersonalizedLM) -> tuple[Tensor, Tensor]:
    """Hidden states of a small row that shares its prompt, and a gradient of its embeddings."""
    embed = lm.causal_lm.get_input_embeddings()
    ids = [i % embed.weight.shape[0] for i in range(3, 12)]
    batch = lm.pack([Row(0, ids[:3], [ids[3:6], ids[6:9]])]).to(lm.device)
    embeds = embed(batch.input_ids).detach().requires_grad_()
    with torch.enable_grad():
        hidden = hidden_states(lm.causal_lm, embeds, batch)
        (slope,) = torch.autograd.grad(hidden.float().pow(2).mean(), embeds)
    return hidden.detach(), slope

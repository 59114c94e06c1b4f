"""Log-probabilities of response tokens, without the logits of the whole batch in memory.

The output layer runs on response positions only, in chunks of tokens. If it is frozen (as under
LoRA), the gradient with respect to the hidden states is computed in the forward pass, chunk by
chunk, so that no `[tokens, vocabulary]` tensor outlives its chunk.
"""

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from prlhf.infra.errors import UserError

CHUNK: Final = 256


def token_logps(
    hidden: Tensor,
    head: nn.Module,
    targets: Tensor,
    *,
    chunk: int = CHUNK,
    softcap: float | None = None,
) -> Tensor:
    """log p(target) of each position, nats, [M], in float32 (float64 for float64 hidden states).

    Args:
        hidden: last hidden states that predict each target, [M, d].
        head: the output layer, hidden -> vocabulary.
        targets: token ids, int64 [M].
        chunk: positions whose logits exist at the same time.
        softcap: `final_logit_softcapping` of models that squash their logits, else None.
    """
    plain = type(head) is nn.Linear and softcap is None
    if plain and not any(p.requires_grad for p in head.parameters()):
        return _FrozenHead.apply(hidden, head.weight, head.bias, targets, chunk)
    parts = []
    for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        if torch.is_grad_enabled():
            parts.append(checkpoint(_chunk_logps, h, head, t, softcap, use_reentrant=False))
        else:
            parts.append(_chunk_logps(h, head, t, softcap))
    return torch.cat(parts)


def _chunk_logps(hidden: Tensor, head: nn.Module, targets: Tensor, softcap: float | None) -> Tensor:
    logits = _wide(head(hidden))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return -F.cross_entropy(logits, targets, reduction="none")


class _FrozenHead(torch.autograd.Function):
    """log softmax(W h + b)[target]; saves d logp / d h = W[target] - softmax(W h + b) W."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int
    ) -> Tensor:
        logps = _wide(hidden.new_empty(len(hidden)))
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = _wide(F.linear(hidden[part], weight, bias))
            target = targets[part].unsqueeze(1)
            log_z = torch.logsumexp(logits, dim=1, keepdim=True)
            logps[part] = (logits.gather(1, target) - log_z).squeeze(1)
            if slope is not None:
                probabilities = logits.sub_(log_z).exp_().to(weight.dtype)
                slope[part] = weight[targets[part]] - probabilities @ weight
        if slope is not None:
            ctx.save_for_backward(slope)
        return logps

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return grads[0].unsqueeze(1).to(slope.dtype) * slope, None, None, None, None


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Make sure that `token_logps` agrees with the model's own logits.

    Raises:
        UserError: the architecture does more than apply its output layer (such as scale logits).
    """
    training = model.training
    model.eval()
    ids = torch.arange(3, 9, device=model.device) % model.get_input_embeddings().weight.shape[0]
    hidden = model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0]
    got = token_logps(hidden, model.get_output_embeddings(), ids, softcap=softcap_of(model))
    logits = model(input_ids=ids[None], use_cache=False).logits[0]
    model.train(training)
    expected = torch.log_softmax(_wide(logits), dim=-1).gather(1, ids[:, None])[:, 0]
    if not agree(got, expected, hidden.dtype):
        raise UserError(
            f"a {model.config.model_type} model computes its logits in a way not supported here",
            where="model.name",
            fix="choose another architecture",
        )


def softcap_of(model: PreTrainedModel) -> float | None:
    """The bound of a model that squashes its logits, else None."""
    softcap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return softcap


def agree(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    """Whether two results agree within what `dtype` can resolve."""
    bound = 0.1 if dtype in (torch.bfloat16, torch.float16) else 1e-3
    return torch.allclose(one, other, atol=bound, rtol=bound)


def sum_by_owner(values: Tensor, owners: Tensor, responses: int) -> Tensor:
    """Sum token values [M, ...] by response: [responses, ...]."""
    return values.new_zeros(responses, *values.shape[1:]).index_add(0, owners, values)

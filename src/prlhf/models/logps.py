"""Log-probabilities of response tokens, without ever holding logits of the whole batch.

The language-model head runs on response positions only, in chunks of tokens. When the head is
frozen (as under LoRA) the gradient with respect to the hidden states is formed in the forward pass,
chunk by chunk, so that no `[tokens, vocabulary]` tensor outlives its chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK = 256


def token_logps(
    hidden: Tensor,
    head: nn.Module,
    targets: Tensor,
    *,
    chunk: int = CHUNK,
    softcap: float | None = None,
) -> Tensor:
    """log p(target) of each position, nats, float32 [M].

    Args:
        hidden: last hidden states that predict each target, [M, d].
        head: the output layer, hidden -> vocabulary.
        targets: token ids, int64 [M].
        chunk: positions whose logits exist at the same time.
        softcap: `final_logit_softcapping` of models that squash their logits, else None.
    """
    plain = type(head) is nn.Linear and softcap is None
    if plain and not any(p.requires_grad for p in head.parameters()):
        bias = getattr(head, "bias", None)
        return _FrozenHead.apply(hidden, head.weight, bias, targets, chunk)
    parts = []
    for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        if torch.is_grad_enabled():
            parts.append(checkpoint(_chunk_logps, h, head, t, softcap, use_reentrant=False))
        else:
            parts.append(_chunk_logps(h, head, t, softcap))
    return torch.cat(parts)


def _chunk_logps(hidden: Tensor, head: nn.Module, targets: Tensor, softcap: float | None) -> Tensor:
    logits = head(hidden).float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return -F.cross_entropy(logits, targets, reduction="none")


class _FrozenHead(torch.autograd.Function):
    """log softmax(W h + b)[target]; saves d logp / d h = W[target] - softmax(W h + b) W."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunk: int,
    ) -> Tensor:
        logps = hidden.new_empty(len(hidden), dtype=torch.float32)
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = F.linear(hidden[part], weight, bias).float()
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


def sum_by_owner(values: Tensor, owners: Tensor, responses: int) -> Tensor:
    """Sum token values [M] by response: [responses]."""
    return values.new_zeros(responses).index_add(0, owners, values)

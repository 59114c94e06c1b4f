"""What the tests hold the code to: the definitions, written plainly, one sequence at a time.

Everything is float64 and unbatched, with full logits and explicit loops, and shares no code with
the package beyond the weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

# Of the prior of users whose models are tested.
PAIRS = (0.0, 4.0, 2.0, 8.0)
OFFSET_SPREAD, WEIGHTS_SPREAD, GENERIC_PULL = 0.7, 1.5, 0.4

LOSSES = ("sigmoid", "ipo", "hinge", "robust")


def double(module: nn.Module) -> Any:
    """An independent copy in float64, gradients cleared.

    Llama's own norm computes in float32 whatever it is given; PyTorch's does not.
    """
    twin = copy.deepcopy(module).double()
    twin.zero_grad(set_to_none=True)
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LlamaRMSNorm):
                norm = nn.RMSNorm(len(child.weight), eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(parent, name, norm)
    return twin


def log_sigmoid(z: float) -> float:
    return -math.log1p(math.exp(-z)) if z >= 0 else z - math.log1p(math.exp(z))


def preference_loss(loss: str, h: float, beta: float, smoothing: float) -> float:
    """A member of the family at one margin."""
    z = beta * h
    if loss == "sigmoid":
        return -(1 - smoothing) * log_sigmoid(z) - smoothing * log_sigmoid(-z)
    if loss == "robust":
        straight, flipped = -log_sigmoid(z), -log_sigmoid(-z)
        return ((1 - smoothing) * straight - smoothing * flipped) / (1 - 2 * smoothing)
    if loss == "hinge":
        return max(0.0, 1 - z)
    if loss == "ipo":
        return (h - 1 / (2 * beta)) ** 2
    raise AssertionError(loss)


def preference_slope(loss: str, h: float, beta: float, smoothing: float) -> float:
    """d preference_loss / d h."""
    z = beta * h
    p = math.exp(log_sigmoid(z))  # sigmoid(z)
    if loss == "sigmoid":
        return beta * (-(1 - smoothing) * (1 - p) + smoothing * p)
    if loss == "robust":
        return beta * (-(1 - smoothing) * (1 - p) - smoothing * p) / (1 - 2 * smoothing)
    if loss == "hinge":
        return -beta if z < 1 else 0.0
    if loss == "ipo":
        return 2 * (h - 1 / (2 * beta))
    raise AssertionError(loss)


def chosen_nll(chosen: float, reference: float, tokens: int) -> tuple[float, float]:
    """Negative log-likelihood per token, and its slope with respect to log pi(y_w)."""
    return -chosen / tokens, -1 / tokens


def chosen_shortfall(chosen: float, reference: float, tokens: int) -> tuple[float, float]:
    """Nats per token below the reference, and the slope."""
    if chosen < reference:
        return (reference - chosen) / tokens, -1 / tokens
    return 0.0, 0.0


def response_logp(
    model: nn.Module, user: Tensor | None, prompt: Sequence[int], response: Sequence[int]
) -> Tensor:
    """log pi(response | [user tokens ; prompt]) by a softmax over full logits, a scalar.

    Args:
        model: a causal language model (or PEFT's wrapper), as it comes from its library.
        user: user tokens [T, d], or None.
        prompt, response: token ids.
    """
    embed = model.get_input_embeddings()
    inputs = embed(torch.tensor([*prompt, *response]))
    if user is not None:
        inputs = torch.cat([user.to(inputs.dtype), inputs])
    logits = model(inputs_embeds=inputs.unsqueeze(0)).logits[0]
    before = (0 if user is None else len(user)) + len(prompt)
    total = torch.zeros((), dtype=logits.dtype)
    for i, token in enumerate(response):
        total = total + torch.log_softmax(logits[before + i - 1], dim=0)[token]
    return total


UserEmbedding = Callable[[int], Tensor | None]


def softmax(logits: Tensor) -> list[Tensor]:
    exps = torch.exp(logits - logits.max())
    return [one / exps.sum() for one in exps]


def individual(
    shared: Tensor, offsets: Tensor, directions: Tensor, weights: Tensor
) -> UserEmbedding:
    """e_u = e_0 + sum_k (softmax(w_u) - softmax(w_0))_k D_k + d_u, and e_0 for the generic user.

    Offsets d [N + 1, T * d], directions [K, T, d], weights [N + 1, K].
    """

    def embedding(u: int) -> Tensor:
        if u == 0:
            return shared
        total = shared + offsets[u].reshape(shared.shape)
        for own, generic, direction in zip(
            softmax(weights[u]), softmax(weights[0]), directions, strict=True
        ):
            total = total + (own - generic) * direction
        return total

    return embedding


def cluster(centres: Tensor, weights: Tensor, generic: Tensor) -> UserEmbedding:
    """e_u = sum_k softmax(w_u)_k V_k; centres [K, T, d], weights [N + 1, K], generic [K]."""

    def embedding(u: int) -> Tensor:
        total = torch.zeros_like(centres[0])
        for share, centre in zip(softmax(generic if u == 0 else weights[u]), centres, strict=True):
            total = total + share * centre
        return total

    return embedding


def embedding_of(user_model: nn.Module) -> UserEmbedding:
    """The definition that belongs to a (float64) user model's parameters."""
    if user_model.kind == "individual":
        known = user_model.directions, user_model.weights
        return individual(user_model.shared, user_model.offsets.weight, *known)
    if user_model.kind == "cluster":
        return cluster(user_model.centres, user_model.weights.weight, user_model.generic_weights)
    return lambda u: None


def prior(user_model: nn.Module, user: int) -> Tensor | float:
    """A pair's part of minus the log-density of its user's row, by the numbers above."""
    if user == 0 or user_model.kind == "uniform":
        return 0.0
    if user_model.kind == "individual":
        cost = (user_model.offsets.weight[user] ** 2).sum() / (2 * OFFSET_SPREAD**2)
    else:
        own = user_model.weights.weight[user]
        cost = GENERIC_PULL * ((user_model.generic_weights - own.detach()) ** 2).sum()
        cost = cost + ((own - user_model.starts[user]) ** 2).sum() / (2 * WEIGHTS_SPREAD**2)
    return cost / PAIRS[user]

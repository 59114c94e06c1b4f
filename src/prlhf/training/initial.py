"""The user model that P-DPO starts from."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from prlhf.models.base import BaseModel, encode_messages
from prlhf.models.user_model import (
    ClusterUserModel,
    IndividualUserModel,
    UniformUserModel,
    UserModel,
)


def initial_user_model(
    kind: str,
    users: Sequence[str],
    base: BaseModel,
    *,
    tokens: int,
    weights: Tensor | None,
    clusters: int,
    init_scale: float,
    generic_pull: float,
    offset_penalty: float,
    seed: int,
) -> UserModel:
    """A user model whose generic user is neutral and whose groups, if known, already differ.

    The user tokens start as a copy of how the model's own prompts open (`opening_tokens`), which
    disturbs the base model least: on SmolLM2-135M-Instruct it moved the log-probability of a
    response by 0.9 nats on average, random vocabulary by 2.3, one repeated start token by 3.4. Each
    group then gets a
    random direction of its own, shared by its members; without it cluster embeddings could never
    move apart.

    Args:
        kind: `uniform`, `individual` or `cluster`.
        users: ids of the seen users.
        base: the base model.
        tokens: user tokens T.
        weights: pretrained logits w_u, [N + 1, K], row 0 the generic user's; None without
            pretraining.
        clusters: K when there are no pretrained weights.
        init_scale: norm of a group's direction per token, in norms of a typical word embedding.
        generic_pull, offset_penalty: see `prlhf.models.user_model`.
        seed: seed of the directions.
    """
    if kind == "uniform":
        return UniformUserModel(users, 0, base.hidden_size)
    generator = torch.Generator().manual_seed(seed)
    table = base.model.get_input_embeddings().weight.detach().float().cpu()
    start = table[opening_tokens(base, tokens)]
    count = weights.shape[1] if weights is not None else clusters
    directions = torch.randn(count, tokens, base.hidden_size, generator=generator)
    directions = directions * table.std() * init_scale
    if kind == "cluster":
        cluster = ClusterUserModel(
            users, tokens, base.hidden_size, clusters=count, generic_pull=generic_pull
        )
        with torch.no_grad():
            cluster.centres.copy_(start + directions)
            if weights is not None:
                cluster.weights.weight[1:] = weights[1:]
                cluster.generic_weights.copy_(weights[0])
        return cluster
    individual = IndividualUserModel(users, tokens, base.hidden_size, offset_penalty=offset_penalty)
    with torch.no_grad():
        individual.shared.copy_(start)
        if weights is not None:
            mixture = torch.softmax(weights, dim=1)
            # Relative to the generic user, whose offset is zero by definition.
            offsets = (mixture[1:] - mixture[:1]) @ directions.flatten(1)
            individual.offsets.weight[1:] = offsets
    return individual


def opening_tokens(base: BaseModel, count: int) -> list[int]:
    """The first `count` tokens that every prompt of the model shares, over again if too few."""
    tokenizer = base.tokenizer
    if tokenizer.chat_template:
        samples = [
            encode_messages(tokenizer, [{"role": "user", "content": text}]) for text in ("a", "1 b")
        ]
        both = zip(*samples, strict=False)
        shared = [a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], both)]
        if shared:
            return list(itertools.islice(itertools.cycle(shared), count))
    bos = tokenizer.bos_token_id
    return [int(tokenizer.eos_token_id if bos is None else bos)] * count

"""Packing: one sequence for a prompt and several of its responses.

A row is `[user tokens | prompt | response 1 | response 2 | ...]`, where the prompt begins with the
user's text, if that is read. A tree mask lets each response see the user tokens and the prompt but
no other response, and each response's positions continue those of the prompt, so that a row gives
exactly what separate sequences would, but computes the prompt once. Models that cannot take such a
mask get rows of one response each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel

from prlhf.models.logps import agree

PREFIX: Final = 0
PAD: Final = -1

MAX_ROWS: Final = 16
"""Rows of a batch that is scored, at most."""

MAX_POSITIONS: Final = 2048
"""Positions of a batch that is scored, at most, padding included; one row may have more."""

FLEX: Final = "flex_attention"
"""What transformers calls the attention that takes a tree mask in blocks."""

LAYER_KINDS: Final = ("layer_types", "attention_layers")
"""Keys under which configurations list each layer's kind of attention."""


@dataclass(frozen=True)
class Row:
    """A prompt under one user condition, with the responses to score.

    Attributes:
        user_index: 0 for the generic user, else a seen user's index.
        prompt: token ids of the prompt, including the user's text, if it is read.
        responses: token ids of each response, including its end mark.
    """

    user_index: int
    prompt: Sequence[int]
    responses: Sequence[Sequence[int]]

    def length(self, user_tokens: int) -> int:
        """Input positions; a response's last token is predicted but is not an input."""
        return user_tokens + len(self.prompt) + sum(len(r) - 1 for r in self.responses)

    def split(self) -> list[Row]:
        """Rows of one response each, in order."""
        return [replace(self, responses=[response]) for response in self.responses]


@dataclass(frozen=True)
class Packed:
    """A batch of rows as tensors; B rows of L positions, R responses, M response tokens in all.

    Attributes:
        input_ids: int64 [B, L]; slots of user tokens and padding hold 0.
        positions: int64 [B, L].
        segments: int64 [B, L]; 0 for user tokens and prompt, k for the k-th response, -1 for
            padding.
        user_index: int64 [B].
        predictors: int64 [M]; flat position (row * L + column) whose output predicts each token.
        targets: int64 [M]; the response tokens.
        owners: int64 [M]; which of the R responses each token belongs to, in row order.
        tokens: int64 [R]; tokens of each response.
        shared: whether any row holds more than one response, so that the tree mask is needed.
    """

    input_ids: Tensor
    positions: Tensor
    segments: Tensor
    user_index: Tensor
    predictors: Tensor
    targets: Tensor
    owners: Tensor
    tokens: Tensor
    shared: bool

    def to(self, device: torch.device | str) -> Packed:
        """The same batch on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Packed:
        """The same batch in page-locked memory, for asynchronous copies to a GPU."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Packed:
        tensors: dict[str, Any] = {
            f.name: change(getattr(self, f.name)) for f in fields(self) if f.name != "shared"
        }
        return replace(self, **tensors)


def bounded(rows: Sequence[Row], most: int = 1024) -> list[Row]:
    """The same responses in order, in rows of at most `most` response tokens (or one response).

    Attention costs the square of a row's length, mostly for pairs of responses that are masked.
    """
    parts: list[Row] = []
    for row in rows:
        responses: list[Sequence[int]] = []
        for response in row.responses:
            if responses and sum(map(len, responses)) + len(response) > most:
                parts.append(replace(row, responses=responses))
                responses = []
            responses.append(response)
        parts.append(replace(row, responses=responses))
    return parts


def tree_mask(segments: Tensor) -> Tensor:
    """Who may attend to whom: bool [B, 1, L, L] from segments [B, L].

    A position sees the positions before it in the prefix and in its own response. Padding sees
    itself and earlier padding, because no row of an attention matrix may be empty.
    """
    query, key = segments.unsqueeze(2), segments.unsqueeze(1)
    visible = (key == query) | ((key == PREFIX) & (query != PAD))
    return torch.tril(visible).unsqueeze(1)


def block_mask(segments: Tensor) -> BlockMask:
    """The tree mask of `segments` [B, L] for flex attention, which skips fully masked blocks."""

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        asking, asked = segments[row, query], segments[row, key]
        return (query >= key) & ((asking == asked) | ((asked == PREFIX) & (asking != PAD)))

    rows, length = segments.shape
    return create_block_mask(visible, rows, None, length, length, device=segments.device)


def pack(rows: Sequence[Row], user_tokens: int) -> Packed:
    """Put rows into one batch, padded on the right to the longest.

    Raises:
        ValueError: a prompt or response has no tokens.
    """
    length = max(row.length(user_tokens) for row in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    positions = torch.zeros_like(input_ids)
    segments = torch.full_like(input_ids, PAD)
    predictors: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    tokens: list[int] = []
    for number, row in enumerate(rows):
        if not row.prompt or not all(row.responses):
            raise ValueError("prompts and responses need at least one token")
        prefix = user_tokens + len(row.prompt)
        input_ids[number, user_tokens:prefix] = torch.tensor(row.prompt)
        positions[number, :prefix] = torch.arange(prefix)
        segments[number, :prefix] = PREFIX
        at, offset = prefix, number * length
        for k, response in enumerate(row.responses, start=1):
            read = len(response) - 1
            input_ids[number, at : at + read] = torch.tensor(response[:-1], dtype=torch.long)
            positions[number, at : at + read] = torch.arange(prefix, prefix + read)
            segments[number, at : at + read] = k
            predictors += [offset + prefix - 1, *range(offset + at, offset + at + read)]
            targets += response
            owners += [len(tokens)] * len(response)
            tokens.append(len(response))
            at += read
    return Packed(
        input_ids=input_ids,
        positions=positions,
        segments=segments,
        user_index=torch.tensor([row.user_index for row in rows]),
        predictors=torch.tensor(predictors),
        targets=torch.tensor(targets),
        owners=torch.tensor(owners),
        tokens=torch.tensor(tokens),
        shared=any(len(row.responses) > 1 for row in rows),
    )


def batches_by_length(
    lengths: Sequence[int], *, max_rows: int, max_positions: int
) -> list[list[int]]:
    """Indices of the rows of each batch, grouped by length so that there is little padding.

    The longest come first, so that running out of memory shows at once. A batch has at most
    `max_rows` rows and `max_positions` padded positions, but always at least one row.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        last = batches[-1] if batches else []
        if last and len(last) < max_rows and (len(last) + 1) * lengths[last[0]] <= max_positions:
            last.append(i)
        else:
            batches.append([i])
    return batches


def attention_mask(batch: Packed, dtype: torch.dtype) -> Tensor:
    """A padding mask, int64 [B, L], or if needed a tree mask, `dtype` [B, 1, L, L].

    The tree mask is additive, as both `sdpa` and `eager` attention take it.
    """
    if not batch.shared:
        return (batch.segments != PAD).long()
    visible = tree_mask(batch.segments)
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)


def hidden_states(model: PreTrainedModel, embeds: Tensor, batch: Packed) -> Tensor:
    """Last hidden states [B, L, d] of packed rows, from their input embeddings [B, L, d]."""
    by_blocks = batch.shared and model.config._attn_implementation == FLEX
    mask = block_mask(batch.segments) if by_blocks else attention_mask(batch, embeds.dtype)
    output = model.base_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=batch.positions, use_cache=False
    )
    return cast(Tensor, output.last_hidden_state)


@torch.no_grad()
def takes_tree_mask(model: PreTrainedModel, longest: int) -> bool:
    """Whether packed rows give the same result as separate ones, tried on a tiny input.

    Windowed attention, which would differ on longer inputs only, is excluded by configuration.

    Args:
        model: a causal language model.
        longest: positions of the longest prompt with one response; a window at least as wide does
            no harm.
    """
    config = model.config.get_text_config()
    kinds = {kind for key in LAYER_KINDS for kind in getattr(config, key, None) or ()}
    if kinds - {"full_attention", "sliding_attention", "global"}:
        return False
    window = getattr(config, "sliding_window", None)
    if window is not None and window < longest and kinds != {"full_attention"}:
        return False
    training = model.training
    model.eval()
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = [i % vocabulary for i in range(3, 12)]
    row = Row(0, ids[:3], [ids[3:6], ids[6:9]])
    try:
        together, apart = (
            _probe(model, pack(rows, 0).to(model.device)) for rows in ([row], row.split())
        )
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False
    finally:
        model.train(training)
    return agree(together, apart, together.dtype)


def _probe(model: PreTrainedModel, batch: Packed) -> Tensor:
    hidden = hidden_states(model, model.get_input_embeddings()(batch.input_ids), batch)
    return hidden.reshape(-1, hidden.shape[-1])[batch.predictors]

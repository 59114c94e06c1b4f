"""Batched, KV-cached sampling from prefixes of embeddings: any mix of users in one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from prlhf import distributed
from prlhf.models.base import require_positions
from prlhf.progress import Progress


@dataclass(frozen=True)
class Sampling:
    """How to decode. `temperature` 0 is greedy; `top_p` is ignored then."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0

    def config(self, eos: int, pad: int) -> GenerationConfig:
        """The Hugging Face equivalent. `pad` fills finished rows and never reaches the output."""
        config = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=self.temperature > 0,
            repetition_penalty=self.repetition_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram,
            eos_token_id=eos,
            pad_token_id=pad,
            use_cache=True,
        )
        if self.temperature > 0:
            config.temperature = self.temperature
            config.top_p = self.top_p
            config.top_k = 0
        return config


@dataclass(frozen=True)
class Completion:
    """Generated token ids without the end-of-sequence token; `finished` if that token came."""

    ids: list[int]
    finished: bool


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    lengths: Sequence[int],
    prefix: Callable[[int], Tensor],
    *,
    sampling: Sampling,
    eos: int,
    seed: int,
    batch_size: int,
    label: str,
) -> list[Completion]:
    """Continue every prefix once.

    Rows are batched by length (stable order), left-padded and decoded together with a KV cache.
    The result depends on `seed`, the rows and `batch_size`, not on the global random state, and not
    on how many processes share the batches: each batch has a seed of its own.

    Args:
        model: the language model (possibly with adapters), in eval mode.
        lengths: tokens in each prefix.
        prefix: `prefix(i)` gives row i's input embeddings, float [lengths[i], d].
        eos: id of the end-of-sequence token.
        seed: seed of the sampling.
        batch_size: rows decoded together.
        label: shown with the progress.

    Returns:
        One completion per row, in the order given.

    Raises:
        UserError: the longest prefix and answer are more than the model has positions.
    """
    require_positions(
        model,
        max(lengths, default=0) + sampling.max_new_tokens,
        "a prompt and its answer",
        fix="lower generate.max_new_tokens or tokens.max_prompt",
    )
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    config = sampling.config(eos, pad=eos)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    first = {rows[0]: number * batch_size for number, rows in enumerate(batches)}
    done: dict[int, Completion] = {}
    with (
        torch.random.fork_rng(devices=_cuda_devices(model)),
        Progress(total=len(order), label=label, unit="texts") as progress,
    ):
        for turn in distributed.turns(batches):
            torch.manual_seed(seed + first[turn.rows[0]])
            embeds, mask = _left_pad([prefix(row) for row in turn.rows])
            output = model.generate(
                inputs_embeds=embeds,
                attention_mask=mask,
                generation_config=config,
                synced_gpus=distributed.sharded(),
            )
            if turn.own:
                for row, ids in zip(turn.rows, output.tolist(), strict=True):
                    done[row] = _cut_at(ids, eos)
            progress.advance(turn.together)
    done = distributed.merged(done)
    return [done[row] for row in range(len(lengths))]


def _left_pad(prefixes: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Embeddings [B, L, d] and attention mask [B, L] with the padding on the left."""
    longest = max(len(p) for p in prefixes)
    first = prefixes[0]
    embeds = first.new_zeros(len(prefixes), longest, first.shape[1])
    mask = torch.zeros(len(prefixes), longest, dtype=torch.long, device=first.device)
    for row, rows_prefix in enumerate(prefixes):
        embeds[row, longest - len(rows_prefix) :] = rows_prefix
        mask[row, longest - len(rows_prefix) :] = 1
    return embeds, mask


def _cut_at(ids: list[int], eos: int) -> Completion:
    if eos in ids:
        return Completion(ids[: ids.index(eos)], finished=True)
    return Completion(ids, finished=False)


def _cuda_devices(model: PreTrainedModel) -> list[int]:
    return [model.device.index or 0] if model.device.type == "cuda" else []

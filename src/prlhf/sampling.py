"""Batched sampling with a KV cache: continuing prefixes of embeddings."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Final, cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from prlhf.infra import distributed
from prlhf.infra.progress import Progress
from prlhf.models.base import require_positions

LIKELIEST: Final = 1024
"""Tokens among which a nucleus is looked for first."""


@dataclass(frozen=True)
class Completion:
    """Generated token ids without the end-of-sequence token; `finished` if that token came."""

    ids: list[int]
    finished: bool


def decoding(
    eos: int,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
) -> GenerationConfig:
    """How to decode up to the token `eos`. Temperature 0 is greedy, and ignores `top_p`."""
    drawn = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram_size=no_repeat_ngram,
        eos_token_id=eos,
        # Fills finished rows and never reaches the output.
        pad_token_id=eos,
        use_cache=True,
        **drawn,
    )


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    lengths: Sequence[int],
    prefix: Callable[[int], Tensor],
    *,
    config: GenerationConfig,
    seed: int,
    batch_size: int,
    label: str,
) -> list[Completion]:
    """Continue each prefix once.

    Rows are batched by length (stable order), left-padded and decoded together with a KV cache.
    Rows that have ended leave their batch, half of it at a time. The result depends on `seed`, the
    rows and `batch_size`, but not on the global random state or on the number of processes that
    divide the batches: each batch has its own seed.

    Args:
        model: the language model (possibly with adapters), in eval mode.
        lengths: tokens in each prefix.
        prefix: `prefix(i)` gives row i's input embeddings, float [lengths[i], d].
        config: how to decode (`decoding`).
        seed: seed of the sampling.
        batch_size: rows decoded together.
        label: shown with the progress.

    Returns:
        One completion per row, in the order given.

    Raises:
        UserError: the longest prefix and its answer need more positions than the model has.
    """
    require_positions(
        model,
        max(lengths, default=0) + config.max_new_tokens,
        "a prompt and its answer",
        fix="lower generate.max_new_tokens or tokens.max_prompt",
    )
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    first = {rows[0]: number * batch_size for number, rows in enumerate(batches)}
    done: dict[int, Completion] = {}
    with (
        torch.random.fork_rng([model.device.index or 0] if model.device.type == "cuda" else []),
        Progress(total=len(order), label=label, unit="texts") as progress,
    ):
        for turn in distributed.turns(batches):
            torch.manual_seed(seed + first[turn.rows[0]])
            batch = _decode(model, *_left_pad([prefix(row) for row in turn.rows]), config)
            if turn.own:
                done.update(zip(turn.rows, batch, strict=True))
            progress.advance(turn.together)
    done = distributed.gather(done)
    return [done[row] for row in range(len(lengths))]


class Nucleus(LogitsProcessor):
    """Temperature, then nucleus sampling (Holtzman et al., 2020, arXiv:1904.09751).

    The same as `TemperatureLogitsWarper` and `TopPLogitsWarper` of transformers, which sort the
    whole vocabulary for every token: on a CPU a third of a small model's decoding.
    """

    def __init__(self, temperature: float, top_p: float) -> None:
        self.temperature = temperature
        self.top_p = top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores / self.temperature
        if self.top_p >= 1:
            return scores
        total = scores.logsumexp(dim=1, keepdim=True)
        for count in (min(LIKELIEST, scores.shape[1]), scores.shape[1]):
            best, tokens = scores.topk(count)
            probabilities = (best - total).exp()
            if (probabilities.sum(dim=1) >= self.top_p).all():
                break
        likelier = probabilities.cumsum(dim=1) - probabilities
        kept = best.masked_fill(likelier >= self.top_p, -torch.inf)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, kept)


class _HalfEnded(StoppingCriteria):
    """Stops decoding when at least half of the rows have ended."""

    def __init__(self, eos: int) -> None:
        self.eos = eos

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        ended = (input_ids == self.eos).any(dim=1)
        return ended | (2 * ended.sum() >= len(ended))


def _decode(
    model: PreTrainedModel, embeds: Tensor, mask: Tensor, config: GenerationConfig
) -> list[Completion]:
    """Continue the rows of one batch, which gets smaller as rows end.

    Otherwise each row would be computed for as many steps as the longest answer has tokens.

    Args:
        model, config: see `sample`.
        embeds, mask: left-padded prefixes [B, L, d], and where they are [B, L].

    Returns:
        One completion per row.
    """
    eos, most = cast(int, config.eos_token_id), cast(int, config.max_new_tokens)
    # Processes that share a model have to take the same number of steps: theirs stay whole.
    whole = distributed.sharded()
    stop = StoppingCriteriaList([] if whole else [_HalfEnded(eos)])
    config = copy(config)
    nucleus = Nucleus(config.temperature, config.top_p)
    config.temperature, config.top_p = 1.0, 1.0
    done: dict[int, Completion] = {}
    rows = torch.arange(len(embeds), device=embeds.device)
    ids = rows.new_zeros(len(rows), 0)
    cache = None
    while len(rows):
        config.max_new_tokens = most - ids.shape[1]
        output = model.generate(
            input_ids=ids,
            inputs_embeds=torch.cat([embeds[rows], model.get_input_embeddings()(ids)], dim=1),
            attention_mask=torch.cat([mask[rows], torch.ones_like(ids)], dim=1),
            past_key_values=cache,
            generation_config=config,
            logits_processor=LogitsProcessorList([nucleus] if config.do_sample else []),
            stopping_criteria=stop,
            synced_gpus=whole,
            return_dict_in_generate=True,
        )
        ids, cache = output.sequences, output.past_key_values
        ended = (ids == eos).any(dim=1)
        if ids.shape[1] == most:
            ended[:] = True
        for row, found in zip(rows[ended].tolist(), ids[ended].tolist(), strict=True):
            end = found.index(eos) if eos in found else None
            done[row] = Completion(found[:end], finished=end is not None)
        left = (~ended).nonzero()[:, 0]
        rows, ids = rows[left], ids[left]
        cache.batch_select_indices(left)
    return [done[row] for row in range(len(done))]


def _left_pad(prefixes: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Embeddings [B, L, d] and attention mask [B, L] with the padding on the left."""
    longest, first = max(map(len, prefixes)), prefixes[0]
    embeds = first.new_zeros(len(prefixes), longest, first.shape[1])
    mask = torch.zeros(len(prefixes), longest, dtype=torch.long, device=first.device)
    for row, prefix in enumerate(prefixes):
        embeds[row, longest - len(prefix) :] = prefix
        mask[row, longest - len(prefix) :] = 1
    return embeds, mask

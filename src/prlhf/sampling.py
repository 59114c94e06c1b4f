"""Batched sampling with a KV cache: continuing prefixes of embeddings."""

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.cache_utils import DynamicLayer

from prlhf.infra import distributed
from prlhf.infra.kept import KeptWork, Pace
from prlhf.infra.progress import Progress, say
from prlhf.models.base import require_positions

LIKELIEST: Final = 1024
"""Tokens among which a nucleus is looked for first."""

MOST_BEGUN: Final = 2 * 2**30
"""Bytes that may be kept of a batch whose decoding has begun; of a larger one nothing is."""


@dataclass(frozen=True)
class Completion:
    """Generated token ids without the token that ended them; `finished` if something did.

    Where words ended the answer, they are still there.
    """

    ids: list[int]
    finished: bool


def decoding(
    stops: Sequence[int],
    *,
    stop_texts: Sequence[str] = (),
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
) -> GenerationConfig:
    """How to decode up to one of the tokens `stops`, or of the words `stop_texts`.

    Temperature 0 is greedy, and ignores `top_p`.
    """
    drawn = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram_size=no_repeat_ngram,
        eos_token_id=list(stops),
        stop_strings=list(stop_texts) or None,
        # Fills finished rows and never reaches the output.
        pad_token_id=stops[0],
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
    tokenizer: PreTrainedTokenizerBase | None = None,
    work: KeptWork | None = None,
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
        tokenizer: the model's, to see words that end answers; not needed if `config` has none.
        work: of this run and these rows alone: where answers are kept batch by batch, and within a
            batch when it is time; where those of a killed run are found. None for none.

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
    done = distributed.broadcast(
        _answered(work, batches) if work is not None and distributed.is_main() else {}
    )
    left = [rows for rows in batches if rows[0] not in done]
    if done:
        say(f"{label}: {len(done)} of {len(order)} texts are known from a run that was stopped")
    with (
        torch.random.fork_rng([model.device.index or 0] if model.device.type == "cuda" else []),
        Progress(total=sum(map(len, left)), label=label, unit="texts") as progress,
    ):
        for turn in distributed.turns(left):
            torch.manual_seed(seed + first[turn.rows[0]])
            prefixes = _left_pad([prefix(row) for row in turn.rows])
            begun = None
            if work is not None and turn.own and not distributed.sharded():
                begun = _Begun(work, f"begun-{turn.rows[0]}", model.device)
            batch = _decode(model, *prefixes, config, tokenizer, begun)
            if turn.own:
                done.update(zip(turn.rows, batch, strict=True))
                if work is not None:
                    work.save(f"answers-{turn.rows[0]}", {}, _plain(batch))
            if begun is not None:
                begun.over()
            progress.advance(turn.together)
    done = distributed.gather(done)
    return [done[row] for row in range(len(lengths))]


def _answered(work: KeptWork, batches: Sequence[list[int]]) -> dict[int, Completion]:
    """The answers of all batches that are kept."""
    found: dict[int, Completion] = {}
    for rows in batches:
        kept = work.load(f"answers-{rows[0]}")
        if kept is not None:
            found.update(zip(rows, _completions(kept[1]), strict=True))
            work.drop(f"begun-{rows[0]}")
    return found


def _plain(completions: Iterable[Completion]) -> list[Any]:
    return [[each.ids, each.finished] for each in completions]


def _completions(plain: Iterable[Any]) -> list[Completion]:
    return [Completion(ids, finished) for ids, finished in plain]


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

    def __init__(self, ends: StoppingCriteriaList) -> None:
        self.ends = ends

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        # What fills rows that have ended is an end itself.
        ended = self.ends(input_ids, scores)
        return ended | (2 * ended.sum() >= len(ended))


class _Due(StoppingCriteria):
    """Stops decoding when it is time to keep what there is."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        return torch.full((len(input_ids),), self.pace.due(), device=input_ids.device)


class _StillEnded(LogitsProcessor):
    """Goes on filling rows that had ended when decoding was stopped, as if it had not been.

    Args:
        ended: which rows, bool [B].
        length: tokens of each row so far: the next token is the one that nobody else fills.
        fill: what they are filled with.
    """

    def __init__(self, ended: Tensor, length: int, fill: int) -> None:
        self.ended = ended
        self.length = length
        self.fill = fill

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] > self.length:
            return scores
        scores = scores.masked_fill(self.ended[:, None], -torch.inf)
        scores[self.ended, self.fill] = 0.0
        return scores


@dataclass
class _State:
    """Where the decoding of a batch is.

    Attributes:
        rows: the rows that are still decoded, int64 [B].
        ids: their tokens so far, int64 [B, n].
        cache: their keys and values; None at the start.
        done: the answers of the others.
    """

    rows: Tensor
    ids: Tensor
    cache: DynamicCache | None
    done: dict[int, Completion]


class _Begun:
    """A batch whose decoding is kept while it goes on.

    The keys and values are kept, too. To compute them anew, all tokens at once, would round them in
    another way, and other answers might come of it.
    """

    def __init__(self, work: KeptWork, key: str, device: torch.device) -> None:
        self.work = work
        self.key = key
        self.device = device

    def save(self, state: _State) -> None:
        """Keep the state, unless that is very large or of a kind not known here."""
        layers = [] if state.cache is None else state.cache.layers
        tensors = {"rows": state.rows, "ids": state.ids, "random": self._random()}
        with self.work.pace.keeping():
            if any(type(layer) is not DynamicLayer for layer in layers):
                return
            for number, layer in enumerate(layers):
                tensors |= {f"keys_{number}": layer.keys, f"values_{number}": layer.values}
            if sum(each.nbytes for each in tensors.values()) <= MOST_BEGUN:
                done = {row: _plain([each])[0] for row, each in state.done.items()}
                self.work.save(self.key, tensors, {"layers": len(layers), "done": done})

    def load(self) -> _State | None:
        """The state that a killed run kept, with that of the random numbers; None for none."""
        kept = self.work.load(self.key)
        if kept is None:
            return None
        tensors, about = kept
        moved = {name: each.to(self.device) for name, each in tensors.items() if name != "random"}
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random"], self.device)
        else:
            torch.set_rng_state(tensors["random"])
        cache = DynamicCache(
            [(moved[f"keys_{i}"], moved[f"values_{i}"]) for i in range(about["layers"])]
        )
        done = zip(map(int, about["done"]), _completions(about["done"].values()), strict=True)
        return _State(moved["rows"], moved["ids"], cache, dict(done))

    def over(self) -> None:
        """The answers are kept: this is not needed any more."""
        self.work.drop(self.key)

    def _random(self) -> Tensor:
        if self.device.type == "cuda":
            return torch.cuda.get_rng_state(self.device)
        return torch.get_rng_state()


def _decode(
    model: PreTrainedModel,
    embeds: Tensor,
    mask: Tensor,
    config: GenerationConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    begun: _Begun | None,
) -> list[Completion]:
    """Continue the rows of one batch, which gets smaller as rows end.

    Otherwise each row would be computed for as many steps as the longest answer has tokens.

    Args:
        model, config, tokenizer: see `sample`.
        embeds, mask: left-padded prefixes [B, L, d], and where they are [B, L].
        begun: where the state is kept when it is time, and that of a killed run is found; None to
            keep nothing.

    Returns:
        One completion per row.
    """
    stops, most = cast(list[int], config.eos_token_id), cast(int, config.max_new_tokens)
    ends = StoppingCriteriaList([EosTokenCriteria(stops)])
    if config.stop_strings:
        ends.append(StopStringCriteria(tokenizer, config.stop_strings))
    # Processes that share a model have to take the same number of steps: theirs stay whole.
    whole = distributed.sharded()
    stop = StoppingCriteriaList([] if whole else [_HalfEnded(ends)])
    if begun is not None:
        stop.append(_Due(begun.work.pace))
    config = copy(config)
    nucleus = Nucleus(config.temperature, config.top_p)
    config.temperature, config.top_p = 1.0, 1.0
    state = None if begun is None else begun.load()
    if state is None:
        rows = torch.arange(len(embeds), device=embeds.device)
        state = _State(rows, rows.new_zeros(len(rows), 0), None, {})
    while len(state.rows):
        rows, ids = state.rows, state.ids
        processors = [nucleus] if config.do_sample else []
        if ids.shape[1]:
            processors.append(_StillEnded(ends(ids, embeds), ids.shape[1], stops[0]))
        config.max_new_tokens = most - ids.shape[1]
        output = model.generate(
            input_ids=ids,
            inputs_embeds=torch.cat([embeds[rows], model.get_input_embeddings()(ids)], dim=1),
            attention_mask=torch.cat([mask[rows], torch.ones_like(ids)], dim=1),
            past_key_values=state.cache,
            generation_config=config,
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=stop,
            tokenizer=tokenizer,
            synced_gpus=whole,
            return_dict_in_generate=True,
        )
        ids, cache = output.sequences, output.past_key_values
        ended = ends(ids, embeds)
        if not whole and ids.shape[1] < most and 2 * ended.sum() < len(ended):
            # It was time: nobody leaves yet, because results depend a little on who is together.
            state = _State(rows, ids, cache, state.done)
            cast(_Begun, begun).save(state)
            continue
        over = ended | (ids.shape[1] == most)
        for row, found, finished in zip(
            rows[over].tolist(), ids[over].tolist(), ended[over].tolist(), strict=True
        ):
            end = next((place for place, token in enumerate(found) if token in stops), None)
            state.done[row] = Completion(found[:end], finished)
        left = (~over).nonzero()[:, 0]
        cache.batch_select_indices(left)
        state = _State(rows[left], ids[left], cache, state.done)
    return [state.done[row] for row in range(len(state.done))]


def _left_pad(prefixes: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Embeddings [B, L, d] and attention mask [B, L] with the padding on the left."""
    longest, first = max(map(len, prefixes)), prefixes[0]
    embeds = first.new_zeros(len(prefixes), longest, first.shape[1])
    mask = torch.zeros(len(prefixes), longest, dtype=torch.long, device=first.device)
    for row, prefix in enumerate(prefixes):
        embeds[row, longest - len(prefix) :] = prefix
        mask[row, longest - len(prefix) :] = 1
    return embeds, mask

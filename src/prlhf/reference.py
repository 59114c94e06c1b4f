"""The reference pass: log pi_ref and features of every distinct response, once per data set.

Users share prompts and responses, so the pass runs over distinct (prompt, response), with several
responses packed behind a prompt, and not over pairs. If the reference reads users' texts, too, the
same prompt with another text in front of it counts as another prompt.

What is computed together decides how results are rounded. Batches are therefore divided by content:
a new row changes the batch of its prompt and leaves the others as they are, to the last bit. So a
batch that an earlier pass computed need not be computed again, and the results do not tell.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from typing import Final, NamedTuple

import pandas as pd
from safetensors.torch import load, save
from torch import Tensor

from prlhf.data import GENERIC
from prlhf.data.ids import content_hash
from prlhf.data.reference import Scored, save_reference, text_key
from prlhf.infra import distributed
from prlhf.infra.cache import ResultCache
from prlhf.infra.progress import Progress, say
from prlhf.models.base import Encoder
from prlhf.models.packing import MAX_POSITIONS, MAX_ROWS, Row, bounded
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.scores import SomeScores

CHUNK: Final = 64
"""Batches that are encoded, and divided among the processes, together."""


class Request(NamedTuple):
    """A prompt, the user's text in front of it (None for none), and responses to score."""

    prompt: str
    text: str | None
    responses: list[str]


Batch = list[Request]


def distinct_texts(tables: Iterable[pd.DataFrame], reading: Encoder | None = None) -> list[Request]:
    """Each prompt with its distinct responses, in a stable order.

    With an encoder `reading` users' texts: each prompt behind each text, where a user has one.
    """
    found: dict[tuple[str, str], set[str]] = {}
    for table in tables:
        # No user's text is empty.
        texts = [""] * len(table) if reading is None else reading.user_texts(table)
        for side in ("chosen", "rejected"):
            for prompt, text, response in zip(table["prompt"], texts, table[side], strict=True):
                if text is not None:
                    found.setdefault((prompt, text), set()).add(response)
    return [
        Request(prompt, text or None, sorted(found[prompt, text])) for prompt, text in sorted(found)
    ]


def plan_batches(requests: Iterable[Request], encoder: Encoder) -> list[Batch]:
    """Batches of requests of similar length, such that a change of one leaves most as they are.

    Within a class of lengths, requests are split in two by the next bit of a hash of their prompt
    until each part fits into a batch: whether a batch stays one depends on what is in it alone. A
    request of many responses is several. The longest come first, so that running out of memory
    shows at once.
    """
    classes: dict[int, list[tuple[int, int, Request]]] = defaultdict(list)
    for prompt, text, responses in requests:
        rest = iter(responses)
        row = _encoded(Request(prompt, text, responses), encoder)
        for number, part in enumerate(bounded([row])):
            request = Request(prompt, text, [next(rest) for _ in part.responses])
            length = part.length(0)
            place = int(content_hash(prompt, text or "", str(number)), 16)
            # Four classes from one power of two to the next.
            scale = 1 << max(length.bit_length() - 3, 0)
            classes[length // scale * scale].append((place, length, request))
    return list(
        chain.from_iterable(
            _split(sorted(classes[least], key=lambda each: each[0]), 63)
            for least in sorted(classes, reverse=True)
        )
    )


def _split(requests: list[tuple[int, int, Request]], bit: int) -> Iterator[Batch]:
    """Divide requests of one class, (place, length, request), by the places' bits from `bit` on."""
    rows, longest = len(requests), max(length for _, length, _ in requests)
    if rows == 1 or (rows <= MAX_ROWS and rows * longest <= MAX_POSITIONS):
        yield [request for _, _, request in requests]
        return
    ones = [each for each in requests if each[0] >> bit & 1]
    zeros = [each for each in requests if not each[0] >> bit & 1]
    for half in (zeros, ones):
        if half:
            yield from _split(half, bit - 1)


def reference_pass(
    lm: PersonalizedLM,
    tables: Sequence[pd.DataFrame],
    directory: Path,
    reading: Encoder | None = None,
    *,
    features: bool = True,
    cache: ResultCache | None = None,
) -> None:
    """Score every distinct response in the prepared tables under the reference model.

    Args:
        lm: `PersonalizedLM.reference(...)`.
        tables: prepared splits, with columns prompt, chosen, rejected, and user_text if it is read.
        directory: an existing one, for the results; the main process writes them.
        reading: encodes prompts with their users' texts, to score responses to those as well; None
            if the reference reads no user texts.
        features: whether features are wanted, of responses to prompts without a user's text.
        cache: results of earlier passes of this model under these limits, to which those of this
            pass are added as they come; so a killed pass goes on where it was. None for none.
    """
    plain = plan_batches(distinct_texts(tables), lm.encoder)
    parts = _score(lm, lm.encoder, plain, "reference", features, cache)
    if reading is not None:
        behind = plan_batches(distinct_texts(tables, reading), reading)
        label = "reference, with user texts"
        parts = chain(parts, _score(lm, reading, behind, label, False, cache))
    if distributed.is_main():
        save_reference(
            directory,
            parts,
            texts=sum(len(request.responses) for batch in plain for request in batch),
            width=lm.base.hidden_size if features else None,
        )
        if cache is not None:
            cache.trim()
    else:
        for _ in parts:
            pass


def _score(
    lm: PersonalizedLM,
    encoder: Encoder,
    batches: Sequence[Batch],
    label: str,
    features: bool,
    cache: ResultCache | None,
) -> Iterator[Scored]:
    """Results of the batches, in order; in processes other than the main one, of nothing."""
    main = distributed.is_main()
    keys = [_key(batch) for batch in batches]
    total = sum(map(len, batches))
    if main and cache is not None:
        known = sum(len(batch) for key, batch in zip(keys, batches, strict=True) if key in cache)
        total -= known
        if known:
            say(f"{label}: {known} of {known + total} rows are known from an earlier pass")
    with Progress(total, label, "rows") as progress:
        for start in range(0, len(batches), CHUNK):
            part = slice(start, start + CHUNK)
            chunk = dict(zip(keys[part], batches[part], strict=True))
            found = _kept(cache, chunk, features) if main and cache is not None else {}
            missing = distributed.broadcast([key for key in chunk if key not in found])
            rows = [_encoded(request, encoder) for key in missing for request in chunk[key]]
            places = iter(range(len(rows)))
            dealt = [[next(places) for _ in chunk[key]] for key in missing]
            responses = [sum(len(rows[i].responses) for i in each) for each in dealt]
            starts = dict(zip(accumulate(responses, initial=0), missing, strict=False))
            turns = lm.deal(rows, dealt, progress)
            keep = None if cache is None else partial(_keep, cache, starts)
            scores = lm.collect(turns, sum(responses), features=features, keep=keep)
            if not main:
                continue
            computed = {"logps": scores.logps.split(responses)}
            if scores.features is not None:
                computed["features"] = scores.features.split(responses)
            for place, key in enumerate(missing):
                found[key] = {name: each[place] for name, each in computed.items()}
            for key, batch in chunk.items():
                texts = [text_key(r.prompt, each, r.text) for r in batch for each in r.responses]
                yield Scored(
                    texts, found[key]["logps"], found[key]["features"] if features else None
                )


def _keep(cache: ResultCache, keys: Mapping[int, str], part: SomeScores) -> None:
    """Keep the results of a batch, whose key is that of its first response."""
    scores = part.scores
    kept = {"logps": scores.logps, "features": scores.features}
    found = {name: each for name, each in kept.items() if each is not None}
    cache.put(keys[int(part.where[0])], save(found))


def _key(batch: Batch) -> str:
    """Name of a batch's results, by all that is in it."""
    counted = ((r.prompt, r.text or "", str(len(r.responses)), *r.responses) for r in batch)
    return content_hash(*chain.from_iterable(counted))


def _kept(cache: ResultCache, keys: Iterable[str], features: bool) -> dict[str, dict[str, Tensor]]:
    """The results in the cache, by key; those that lack features that are wanted do not count."""
    entries = ((key, cache.get(key)) for key in keys)
    kept = {key: load(entry) for key, entry in entries if entry is not None}
    return {key: each for key, each in kept.items() if "features" in each or not features}


def _encoded(request: Request, encoder: Encoder) -> Row:
    prompt = encoder.prompt(request.prompt, request.text)
    return Row(GENERIC, prompt, [encoder.response(each) for each in request.responses])

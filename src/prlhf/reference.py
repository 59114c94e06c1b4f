"""The reference pass: log pi_ref and features of every distinct response, once per data set.

Users share prompts and responses, so the pass runs over distinct (prompt, response), with several
responses packed behind a prompt, and not over pairs. If the reference reads users' texts, too, the
same prompt with another text in front of it counts as another prompt.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prlhf.data import GENERIC
from prlhf.data.reference import Reference, text_key
from prlhf.infra import distributed
from prlhf.infra.io import atomic_path
from prlhf.infra.progress import say
from prlhf.models.base import Encoder
from prlhf.models.packing import Row
from prlhf.models.personalized import PersonalizedLM, Scores

PART = 2**12
"""Prompts scored and kept together; a killed pass goes on after the last complete part."""

Request = tuple[str, str | None, list[str]]
"""A prompt, the user's text in front of it, and the responses to score."""


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
    return [(prompt, text or None, sorted(found[prompt, text])) for prompt, text in sorted(found)]


def reference_pass(
    lm: PersonalizedLM,
    tables: Sequence[pd.DataFrame],
    reading: Encoder | None = None,
    *,
    parts: Path | None = None,
) -> Reference:
    """Score every distinct response in the prepared tables under the reference model.

    Args:
        lm: `PersonalizedLM.reference(...)`.
        tables: prepared splits, with columns prompt, chosen, rejected, and user_text if it is read.
        reading: encodes prompts with their users' texts, to score responses to those as well; None
            if the reference reads no user texts.
        parts: a directory for intermediate results of this pass, from which a killed pass goes on;
            None to keep nothing.
    """
    requests = distinct_texts(tables)
    scores = _score(lm, lm.encoder, requests, "reference", parts, features=True)
    assert scores.features is not None
    keys = _keys(requests)
    reference = Reference(
        logps=dict(zip(keys, scores.logps.tolist(), strict=True)),
        tokens=dict(zip(keys, scores.tokens.tolist(), strict=True)),
        features=scores.features,
        rows={key: i for i, key in enumerate(keys)},
    )
    if reading is not None:
        requests = distinct_texts(tables, reading)
        scores = _score(lm, reading, requests, "reference, with user texts", parts)
        keys = _keys(requests)
        reference.logps.update(zip(keys, scores.logps.tolist(), strict=True))
        reference.tokens.update(zip(keys, scores.tokens.tolist(), strict=True))
    return reference


def _keys(requests: Sequence[Request]) -> list[str]:
    return [text_key(prompt, r, text) for prompt, text, responses in requests for r in responses]


def _score(
    lm: PersonalizedLM,
    encoder: Encoder,
    requests: Sequence[Request],
    label: str,
    parts: Path | None,
    *,
    features: bool = False,
) -> Scores:
    """Scores of all responses in order, without computing again what is kept in `parts`."""
    done = []
    starts = range(0, len(requests), PART)
    for number, start in enumerate(starts, 1):
        part = requests[start : start + PART]
        named = label if len(starts) == 1 else f"{label}, part {number} of {len(starts)}"
        file = None if parts is None else parts / f"{label}-{number}.safetensors"
        if file is not None and distributed.broadcast(file.exists()):
            say(f"{named}: already done")
            done.append(_load(file, part, lm.base.hidden_size if features else None))
            continue
        rows = [
            Row(GENERIC, encoder.prompt(prompt, text), [encoder.response(r) for r in responses])
            for prompt, text, responses in part
        ]
        done.append(lm.score(rows, label=named, features=features))
        if file is not None and distributed.is_main():
            _save(done[-1], file)
    return Scores(
        torch.cat([torch.zeros(0), *(part.logps for part in done)]),
        torch.cat([torch.zeros(0, dtype=torch.long), *(part.tokens for part in done)]),
        torch.cat([cast(Tensor, part.features) for part in done]) if features else None,
    )


def _save(scores: Scores, file: Path) -> None:
    tensors = {"logps": scores.logps, "tokens": scores.tokens, "features": scores.features}
    with atomic_path(file) as partial:
        save_file({name: t for name, t in tensors.items() if t is not None}, str(partial))


def _load(file: Path, requests: Sequence[Request], dim: int | None) -> Scores:
    """What `_save` wrote; the main process reads it and sends it to the others."""
    count = sum(len(responses) for _, _, responses in requests)
    logps, tokens = torch.zeros(count), torch.zeros(count, dtype=torch.long)
    features = None if dim is None else torch.zeros(count, dim)
    if distributed.is_main():
        kept = load_file(str(file))
        logps, tokens, features = kept["logps"], kept["tokens"], kept.get("features")
    distributed.all_reduce_sum_(logps, tokens, features)
    return Scores(logps, tokens, features)

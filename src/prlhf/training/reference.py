"""The reference pass: log pi_ref and features of every distinct text, once per data set.

Users share prompts and responses, so the pass runs over distinct (prompt, response) texts, packed
several responses to a prompt, and not over pairs. Where the reference sees what users say of
themselves, too, the same prompt behind another user's text is another prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prlhf import distributed
from prlhf.io import atomic_path
from prlhf.models.base import Encoder
from prlhf.models.packing import Row
from prlhf.models.personalized import PersonalizedLM, Scores
from prlhf.models.user_model import GENERIC
from prlhf.progress import say
from prlhf.training.reference_files import Reference, text_key

PART = 2**12
"""Prompts that are scored together, and kept when the pass is killed after them."""

Asked = tuple[str, str | None, list[str]]
"""A prompt, the user's text before it, and the responses to score."""


def distinct_texts(tables: Iterable[pd.DataFrame]) -> dict[str, list[str]]:
    """Prompt -> its distinct responses, in a stable order."""
    texts: dict[str, set[str]] = {}
    for table in tables:
        for side in ("chosen", "rejected"):
            for prompt, response in zip(table["prompt"], table[side], strict=True):
                texts.setdefault(prompt, set()).add(response)
    return {prompt: sorted(texts[prompt]) for prompt in sorted(texts)}


def distinct_behind_user_texts(
    tables: Iterable[pd.DataFrame], encoder: Encoder
) -> dict[tuple[str, str], list[str]]:
    """(Prompt, user's text) -> its distinct responses, in a stable order."""
    texts: dict[tuple[str, str], set[str]] = {}
    for table in tables:
        stated = encoder.user_texts(table)
        for side in ("chosen", "rejected"):
            for prompt, text, response in zip(table["prompt"], stated, table[side], strict=True):
                if text is not None:
                    texts.setdefault((prompt, text), set()).add(response)
    return {prefix: sorted(texts[prefix]) for prefix in sorted(texts)}


def reference_pass(
    lm: PersonalizedLM,
    tables: Sequence[pd.DataFrame],
    reading: Encoder | None = None,
    *,
    parts: Path | None = None,
) -> Reference:
    """Score every distinct text of the prepared tables under the reference model.

    Args:
        lm: `PersonalizedLM.reference(...)`.
        tables: prepared splits, with columns prompt, chosen, rejected, and user_text if it is read.
        reading: encodes prompts behind their users' texts, to score those as well; None if the
            reference sees no user text.
        parts: a directory of this very pass, where what is done is kept, so that a killed one goes
            on from there; None to keep nothing.
    """
    texts = distinct_texts(tables)
    asked: list[Asked] = [(prompt, None, responses) for prompt, responses in texts.items()]
    scores = _score(lm, lm.encoder, asked, "reference", parts, features=True)
    assert scores.features is not None
    keys = _keys(asked)
    reference = Reference(
        logps=dict(zip(keys, scores.logps.tolist(), strict=True)),
        tokens=dict(zip(keys, scores.tokens.tolist(), strict=True)),
        features=scores.features,
        rows={key: i for i, key in enumerate(keys)},
    )
    if reading is not None:
        behind = distinct_behind_user_texts(tables, reading)
        asked = [(prompt, text, responses) for (prompt, text), responses in behind.items()]
        scores = _score(lm, reading, asked, "reference, with user texts", parts)
        keys = _keys(asked)
        reference.logps.update(zip(keys, scores.logps.tolist(), strict=True))
        reference.tokens.update(zip(keys, scores.tokens.tolist(), strict=True))
    return reference


def _keys(asked: Sequence[Asked]) -> list[str]:
    return [text_key(prompt, r, text) for prompt, text, responses in asked for r in responses]


def _score(
    lm: PersonalizedLM,
    encoder: Encoder,
    asked: Sequence[Asked],
    label: str,
    parts: Path | None,
    *,
    features: bool = False,
) -> Scores:
    """Log-probabilities and tokens (and features) of all responses, in order.

    Part by part; what is kept in `parts` is not computed again.
    """
    done = []
    starts = range(0, len(asked), PART)
    for number, start in enumerate(starts, 1):
        part = asked[start : start + PART]
        named = label if len(starts) == 1 else f"{label}, part {number} of {len(starts)}"
        file = None if parts is None else parts / f"{label}-{number}.safetensors"
        if file is not None and distributed.told(file.exists()):
            say(f"{named}: was done before")
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


def _load(file: Path, asked: Sequence[Asked], dim: int | None) -> Scores:
    """What `_save` wrote; the main process, whose file it is, tells the others."""
    count = sum(len(responses) for _, _, responses in asked)
    logps, tokens = torch.zeros(count), torch.zeros(count, dtype=torch.long)
    features = None if dim is None else torch.zeros(count, dim)
    if distributed.is_main():
        kept = load_file(str(file))
        logps, tokens, features = kept["logps"], kept["tokens"], kept.get("features")
    distributed.put_together(logps, tokens, features)
    return Scores(logps, tokens, features)

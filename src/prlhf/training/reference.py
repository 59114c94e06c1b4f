"""The reference pass: log pi_ref and features of every distinct text, once per data set.

Users share prompts and responses, so the pass runs over distinct (prompt, response) texts, packed
several responses to a prompt, and not over pairs. Where the reference sees what users say of
themselves, too, the same prompt behind another user's text is another prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from prlhf.models.base import Encoder
from prlhf.models.packing import Row
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.user_model import GENERIC
from prlhf.training.reference_files import Reference, text_key


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
    lm: PersonalizedLM, tables: Sequence[pd.DataFrame], reading: Encoder | None = None
) -> Reference:
    """Score every distinct text of the prepared tables under the reference model.

    Args:
        lm: `PersonalizedLM.reference(...)`.
        tables: prepared splits, with columns prompt, chosen, rejected, and user_text if it is read.
        reading: encodes prompts behind their users' texts, to score those as well; None if the
            reference sees no user text.
    """
    texts = distinct_texts(tables)
    keys = [text_key(prompt, r) for prompt, responses in texts.items() for r in responses]
    rows = [
        Row(GENERIC, lm.encoder.prompt(prompt), [lm.encoder.response(r) for r in responses])
        for prompt, responses in texts.items()
    ]
    scores = lm.score(rows, label="reference", features=True)
    assert scores.features is not None
    reference = Reference(
        logps=dict(zip(keys, scores.logps.tolist(), strict=True)),
        tokens=dict(zip(keys, scores.tokens.tolist(), strict=True)),
        features=scores.features,
        rows={key: i for i, key in enumerate(keys)},
    )
    if reading is not None:
        _add_user_texts(reference, lm, distinct_behind_user_texts(tables, reading), reading)
    return reference


def _add_user_texts(
    reference: Reference,
    lm: PersonalizedLM,
    texts: dict[tuple[str, str], list[str]],
    encoder: Encoder,
) -> None:
    keys = [text_key(prompt, r, text) for (prompt, text), found in texts.items() for r in found]
    rows = [
        Row(GENERIC, encoder.prompt(prompt, text), [encoder.response(r) for r in found])
        for (prompt, text), found in texts.items()
    ]
    if rows:
        scores = lm.score(rows, label="reference, with user texts")
        reference.logps.update(zip(keys, scores.logps.tolist(), strict=True))
        reference.tokens.update(zip(keys, scores.tokens.tolist(), strict=True))

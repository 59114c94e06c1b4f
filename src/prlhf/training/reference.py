"""The reference pass: log pi_ref and features of every distinct text, once per data set.

Users share prompts and responses, so the pass runs over distinct (prompt, response) texts, packed
several responses to a prompt, and not over pairs. Where the reference sees what users say of
themselves, too, the same prompt behind another user's text is another prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prlhf.io import content_hash, read_parquet, write_parquet
from prlhf.models.base import Encoder
from prlhf.models.packing import Row
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.user_model import GENERIC

LOGPS = "logps.parquet"
FEATURES = "features.safetensors"


def text_key(prompt: str, response: str, user_text: str | None = None) -> str:
    """Name of a (canonical prompt, response) text, or of one behind a user's text."""
    return content_hash(prompt, response, *([] if user_text is None else [user_text]))


@dataclass(frozen=True)
class Reference:
    """What the frozen base model says about each text.

    Attributes:
        logps: log pi_ref by text key, nats.
        tokens: tokens of the response by text key.
        features: float32 [N, d], mean hidden state over the response, of texts without a user's.
        rows: row of `features` by text key.
    """

    logps: dict[str, float]
    tokens: dict[str, int]
    features: Tensor
    rows: dict[str, int]

    def differences(self, table: pd.DataFrame) -> Tensor:
        """Feature difference chosen - rejected of each pair of a prepared table, [P, d]."""
        sides = []
        for side in ("chosen", "rejected"):
            keys = map(text_key, table["prompt"], table[side])
            sides.append(self.features[[self.rows[key] for key in keys]])
        return sides[0] - sides[1]


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


def save_reference(reference: Reference, directory: Path) -> None:
    """Write to an existing directory."""
    table = pd.DataFrame(
        {
            "text": list(reference.logps),
            "logp": list(reference.logps.values()),
            "tokens": list(reference.tokens.values()),
        }
    )
    write_parquet(directory / LOGPS, table)
    save_file({"features": reference.features.contiguous()}, str(directory / FEATURES))


def load_reference(directory: Path) -> Reference:
    """Read what `save_reference` wrote."""
    table = read_parquet(directory / LOGPS)
    keys = table["text"].tolist()
    features = load_file(str(directory / FEATURES))["features"].to(torch.float32)
    return Reference(
        logps=dict(zip(keys, table["logp"].tolist(), strict=True)),
        tokens=dict(zip(keys, table["tokens"].tolist(), strict=True)),
        features=features,
        # Texts behind a user's come last and have no features.
        rows={key: i for i, key in enumerate(keys[: len(features)])},
    )

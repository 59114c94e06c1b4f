"""The reference pass's results: what they are, and their files. No model is needed to read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prlhf.io import content_hash, read_parquet, write_parquet

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

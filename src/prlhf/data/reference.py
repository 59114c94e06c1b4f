"""The results of the reference pass and their files, which can be read without a model."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prlhf.data.ids import content_hash
from prlhf.infra.io import read_parquet, write_parquet

LOGPS = "logps.parquet"
FEATURES = "features.safetensors"


def text_key(prompt: str, response: str, user_text: str | None = None) -> str:
    """Key of a response to a canonical prompt, or to one with the user's text in front."""
    return content_hash(prompt, response, *([] if user_text is None else [user_text]))


@dataclass(frozen=True)
class Reference:
    """What the frozen base model says about each response.

    Attributes:
        logps: log pi_ref by `text_key`, nats.
        tokens: number of tokens of the response by `text_key`.
        features: mean hidden state over the response, float32 [N, d], of responses to prompts
            without a user's text.
        rows: row of `features` by `text_key`.
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
        # Those with a user's text come last and have no features.
        rows={key: i for i, key in enumerate(keys[: len(features)])},
    )

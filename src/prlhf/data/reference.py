"""The results of the reference pass and their files, which can be read without a model."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from prlhf.data.ids import content_hash
from prlhf.infra.errors import UserError
from prlhf.infra.io import naming, read_parquet, require_file, write_parquet

LOGPS: Final = "logps.parquet"
FEATURES: Final = "features.npy"


def text_key(prompt: str, response: str, user_text: str | None = None) -> str:
    """Key of a response to a canonical prompt, or to one with the user's text in front."""
    return content_hash(prompt, response, *([] if user_text is None else [user_text]))


@dataclass(frozen=True)
class Reference:
    """What the frozen base model says about each response.

    Attributes:
        logps: log pi_ref by `text_key`, nats. Responses that have features come first.
        directory: where the features are, which are read when somebody asks for them.
    """

    logps: dict[str, float]
    directory: Path

    @cached_property
    def features(self) -> Tensor:
        """Mean hidden state over each response, float16 [N, d], mapped from the file.

        Responses to a prompt behind a user's text have none.

        Raises:
            UserError: the pass kept no features, or the file is damaged.
        """
        file = self.directory / FEATURES
        require_file(file)
        try:
            # Copy on write: what somebody does to the tensor does not reach the file.
            return torch.from_numpy(np.load(file, mmap_mode="c"))
        except (ValueError, EOFError) as error:
            raise UserError("is damaged", where=file, fix="`dvc repro` makes it anew") from error

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of `features` by `text_key`."""
        return dict(zip(self.logps, range(len(self.features)), strict=False))

    def rows_of(self, table: pd.DataFrame) -> tuple[Tensor, Tensor]:
        """Rows of `features` of the chosen and the rejected responses of pairs, int64 [P] each."""
        chosen, rejected = (
            torch.tensor(
                [self.rows[key] for key in map(text_key, table["prompt"], table[side])],
                dtype=torch.long,
            )
            for side in ("chosen", "rejected")
        )
        return chosen, rejected


class Scored(NamedTuple):
    """Some results of the pass: keys, log pi_ref in nats, float32 [n], features, float16 [n, d]."""

    keys: list[str]
    logps: Tensor
    features: Tensor | None


def save_reference(
    directory: Path, parts: Iterable[Scored], *, texts: int, width: int | None
) -> None:
    """Write what `load_reference` reads to an existing directory, one part after the other.

    Args:
        directory: where to.
        parts: all results; those with features first.
        texts: N, how many have features.
        width: d; None if none has.
    """
    keys: list[str] = []
    logps: list[Tensor] = []
    file = directory / FEATURES
    with naming(file), file.open("wb") as stream:
        if width is not None:
            shape = {"descr": "<f2", "fortran_order": False, "shape": (texts, width)}
            np.lib.format.write_array_header_1_0(stream, shape)
        for part in parts:
            keys += part.keys
            logps.append(part.logps)
            if part.features is not None:
                stream.write(part.features.numpy().astype("<f2", copy=False).data)
    if width is None:
        file.unlink()
    values = torch.cat([torch.zeros(0), *logps]).double().numpy()
    write_parquet(directory / LOGPS, pd.DataFrame({"text": keys, "logp": values}))


def load_reference(directory: Path) -> Reference:
    """Read what `save_reference` wrote."""
    table = read_parquet(directory / LOGPS)
    logps = dict(zip(table["text"].tolist(), table["logp"].tolist(), strict=True))
    return Reference(logps, directory)

"""The results of the reference pass and their files, which can be read without a model."""

from collections.abc import Iterable, Sequence
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

SET_ASIDE: Final = "set_aside.parquet"
"""The prepared pairs that no model can tell apart, because it reads the same in both responses."""

SET_ASIDE_COLUMNS: Final = ("split", "pair_id", "user_id", "row", "reason", "max_response")
"""Columns of `SET_ASIDE`; `max_response` is the least limit that would tell the pair apart, missing
if none would."""

EQUAL_AFTER_CUT: Final = "equal_after_cut"
"""The reason of a pair whose responses are the same up to `tokens.max_response`."""

EQUAL_TOKENS: Final = "equal_tokens"
"""The reason of a pair whose responses are the same tokens from beginning to end."""


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


def read_set_aside(directory: Path, split: str) -> pd.DataFrame:
    """The pairs of a split that are set aside, `SET_ASIDE_COLUMNS`."""
    table = read_parquet(directory / SET_ASIDE)
    return table[table["split"] == split]


def read_pairs(
    prepared: Path, reference: Path, split: str, columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """The prepared pairs of a split that models can tell apart.

    Args:
        prepared: `data/prepared`.
        reference: `data/reference`.
        split: `train`, `validation`, `test` or `unseen`.
        columns: which are wanted; None for all.
    """
    path = prepared / f"{split}.parquet"
    equal = read_set_aside(reference, split)["pair_id"]
    if equal.empty:
        return read_parquet(path, columns)
    table = read_parquet(path, None if columns is None else [*{*columns, "pair_id"}])
    table = table[~table["pair_id"].isin(equal)].reset_index(drop=True)
    return table if columns is None else table[list(columns)]

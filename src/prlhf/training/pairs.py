"""Preference pairs as training examples, and batches of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, overload

import pandas as pd
import torch
from torch import Tensor

from prlhf.data.contract import stated
from prlhf.models.base import Encoder
from prlhf.models.packing import Packed, Row
from prlhf.models.user_model import GENERIC
from prlhf.training.reference_files import text_key


@dataclass(frozen=True)
class Pair:
    """One preference, encoded, with its reference log-probabilities (nats).

    The prompt holds the user's text, if the model reads it, and so both conditions do: the generic
    user is `u_0 = (u_text, generic id)`.
    """

    user_index: int
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    ref_chosen: float
    ref_rejected: float
    weight: float = 1.0
    as_user: bool | None = None
    """Which term was drawn for it: the user's or the generic user's; None for both."""

    @property
    def length(self) -> int:
        """Tokens of prompt and responses."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)

    def row(self, user_index: int) -> Row:
        """Both responses behind one prompt, under a user condition."""
        return Row(user_index, self.prompt, [self.chosen, self.rejected])


@dataclass(frozen=True)
class PairBatch:
    """P pairs under each of their conditions.

    Attributes:
        packed: rows of the pairs as their users (if computed), then as the generic user (if so);
            each with the chosen response before the rejected one.
        users: int64 [P], the pairs' users.
        ref_chosen, ref_rejected, weight: float32 [P].
        as_user, as_generic: which conditions the rows hold.
        drawn: where each pair has one condition of its own, whether that is its user: bool [P], and
            the rows, as if all were users, hold what was drawn. None otherwise.
    """

    packed: Packed
    users: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    weight: Tensor
    as_user: bool
    as_generic: bool
    drawn: Tensor | None = None

    def __len__(self) -> int:
        return len(self.users)

    @property
    def penalised(self) -> Tensor | None:
        """Whose regularisers the losses include: each pair's user, [P], if there are users.

        Whatever was drawn: the regulariser takes no forward pass, so it is never sampled.
        """
        return self.users if self.as_user else None

    def to(self, device: torch.device | str, non_blocking: bool = True) -> PairBatch:
        """The same batch on `device`."""
        return self._map(
            self.packed.to(device), lambda tensor: tensor.to(device, non_blocking=non_blocking)
        )

    def pin_memory(self) -> PairBatch:
        """The same batch in page-locked memory; what a `DataLoader` calls."""
        return self._map(self.packed.pin_memory(), Tensor.pin_memory)

    def _map(self, packed: Packed, change: Callable[[Tensor], Tensor]) -> PairBatch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {
            name: change(value) for name, value in tensors.items() if isinstance(value, Tensor)
        }
        return replace(self, packed=packed, **changed)


@dataclass(frozen=True)
class PairCollator:
    """Turns pairs into a `PairBatch`.

    Attributes:
        pack: lays rows out for the model (`PersonalizedLM.pack`).
        as_user, as_generic: the conditions to compute; a term of weight zero needs none. Pairs
            for which one was drawn have that one.
    """

    pack: Callable[[Sequence[Row]], Packed]
    as_user: bool
    as_generic: bool

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        drawn = [pair.as_user for pair in pairs if pair.as_user is not None]
        as_user, as_generic = (True, False) if drawn else (self.as_user, self.as_generic)
        users = [GENERIC if pair.as_user is False else pair.user_index for pair in pairs]
        rows = [pair.row(user) for pair, user in zip(pairs, users, strict=True)] if as_user else []
        rows += [pair.row(GENERIC) for pair in pairs] if as_generic else []
        batch = PairBatch(
            packed=self.pack(rows),
            users=torch.tensor([pair.user_index for pair in pairs]),
            ref_chosen=torch.tensor([pair.ref_chosen for pair in pairs]),
            ref_rejected=torch.tensor([pair.ref_rejected for pair in pairs]),
            weight=torch.tensor([pair.weight for pair in pairs]),
            as_user=as_user,
            as_generic=as_generic,
            drawn=torch.tensor(drawn) if drawn else None,
        )
        return {"batch": batch}


class PairTable(Sequence[Pair]):
    """Rows of a prepared table as pairs, each encoded when it is asked for.

    So a million of them take no time to begin with and no memory but their texts': tokens as Python
    numbers take eight times as much. Encoding a pair takes about a millisecond.

    Args:
        table: columns user_index, prompt, chosen, rejected, weight, and user_text if the encoder
            reads it.
        reference: log pi_ref by `text_key`, nats; None for a model that has no reference: the
            log-probabilities are then NaN, so that a loss which used them would be, too.
        encoder: prompts and responses to tokens.
        reference_text: whether pi_ref, too, sees the text that the model sees.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        reference: Mapping[str, float] | None,
        encoder: Encoder,
        *,
        reference_text: bool = False,
    ) -> None:
        self._table = table
        self._reference = reference
        self._encoder = encoder
        self._reference_text = reference_text
        names = ("user_index", "prompt", "chosen", "rejected", "weight")
        # Not lists: as arrays of Arrow, texts take the room of their characters.
        self._columns = [table[name].array for name in names]
        self._texts = table["user_text"].array if encoder.reads_text else None

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        user, prompt, chosen, rejected, weight = (column[index] for column in self._columns)
        text = None if self._texts is None else stated(self._texts[index])
        read = text if self._reference_text else None
        return Pair(
            user_index=int(user),
            prompt=self._encoder.prompt(prompt, text),
            chosen=self._encoder.response(chosen),
            rejected=self._encoder.response(rejected),
            ref_chosen=self._logp(prompt, chosen, read),
            ref_rejected=self._logp(prompt, rejected, read),
            weight=float(weight),
        )

    def _logp(self, prompt: str, response: str, text: str | None) -> float:
        if self._reference is None:
            return math.nan
        return self._reference[text_key(prompt, response, text)]

    @property
    def lengths(self) -> list[int]:
        """The pairs' lengths in characters, which tell long from short without encoding all."""
        columns = [self._table[name].str.len() for name in ("prompt", "chosen", "rejected")]
        lengths: list[int] = sum(columns[1:], columns[0]).tolist()
        return lengths

    def of_users(self, wanted: Callable[[int], bool]) -> PairTable:
        """The pairs of some users, given as a condition on their indices."""
        # As bool: of an empty table it would be numbers, and pandas would look for such columns.
        theirs = self._table["user_index"].map(wanted).astype(bool)
        return PairTable(
            self._table[theirs],
            self._reference,
            self._encoder,
            reference_text=self._reference_text,
        )


def lengths(pairs: Sequence[Pair]) -> list[int]:
    """How long the pairs are, all in the same unit."""
    return pairs.lengths if isinstance(pairs, PairTable) else [pair.length for pair in pairs]


def of_users(pairs: Sequence[Pair], wanted: Callable[[int], bool]) -> Sequence[Pair]:
    """The pairs of some users, given as a condition on their indices."""
    if isinstance(pairs, PairTable):
        return pairs.of_users(wanted)
    return [pair for pair in pairs if wanted(pair.user_index)]

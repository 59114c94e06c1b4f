"""Preference pairs as training examples, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

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


def encode_pairs(
    table: pd.DataFrame,
    reference: dict[str, float],
    encoder: Encoder,
    *,
    reference_text: bool = False,
) -> list[Pair]:
    """Rows of a prepared table as pairs.

    Args:
        table: columns user_index, prompt, chosen, rejected, weight, and user_text if the encoder
            reads it.
        reference: log pi_ref by `text_key`, nats.
        encoder: prompts and responses to tokens.
        reference_text: whether pi_ref, too, sees the text that the model sees.
    """
    columns = ("user_index", "prompt", "chosen", "rejected", "weight")
    return [
        Pair(
            user_index=int(user),
            prompt=encoder.prompt(prompt, text),
            chosen=encoder.response(chosen),
            rejected=encoder.response(rejected),
            ref_chosen=reference[text_key(prompt, chosen, text if reference_text else None)],
            ref_rejected=reference[text_key(prompt, rejected, text if reference_text else None)],
            weight=float(weight),
        )
        for text, user, prompt, chosen, rejected, weight in zip(
            encoder.user_texts(table),
            *(table[column].tolist() for column in columns),
            strict=True,
        )
    ]

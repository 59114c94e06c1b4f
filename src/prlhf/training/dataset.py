"""Preferences as training examples: encoding, and batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, overload

import pandas as pd
import torch
from torch import Tensor

from prlhf.data import GENERIC, clean_user_text
from prlhf.data.reference import text_key
from prlhf.models.base import Encoder
from prlhf.models.packing import Packed, Row


@dataclass(frozen=True)
class PreferenceExample:
    """One preference, encoded, with its reference log-probabilities (nats).

    If the model reads users' texts, the prompt holds the user's text, under both conditions: the
    generic user is `u_0 = (u_text, generic id)`.
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

    def without_weight(self) -> PreferenceExample:
        """The same example with no influence on gradients and means."""
        return replace(self, weight=0.0)


class PreferenceDataset(Sequence[PreferenceExample]):
    """The pairs of a prepared table, each encoded when it is accessed.

    So a million pairs take no time to set up and no memory beyond their texts (as lists of token
    ids they would take eight times as much). Encoding a pair takes about a millisecond.

    Args:
        table: columns user_index, prompt, chosen, rejected, weight, and user_text if the encoder
            reads it.
        reference: log pi_ref by `text_key`, nats; None for a model without a reference, whose
            examples have NaN there, so that a loss that used them would be NaN as well.
        encoder: prompts and responses to tokens.
        reference_text: whether pi_ref, too, sees the user's text that the model sees.
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
        # Arrow's arrays are far smaller than lists of Python strings.
        self._columns = [table[name].array for name in names]
        self._texts = table["user_text"].array if encoder.reads_text else None

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> PreferenceExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[PreferenceExample]: ...
    def __getitem__(self, index: int | slice) -> PreferenceExample | list[PreferenceExample]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        user, prompt, chosen, rejected, weight = (column[index] for column in self._columns)
        text = None if self._texts is None else clean_user_text(self._texts[index])
        read = text if self._reference_text else None
        return PreferenceExample(
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
        """The examples' lengths in characters, to sort them by length without encoding them."""
        columns = [self._table[name].str.len() for name in ("prompt", "chosen", "rejected")]
        lengths: list[int] = sum(columns[1:], columns[0]).tolist()
        return lengths

    @property
    def users(self) -> list[int]:
        """The examples' users, without encoding anything."""
        users: list[int] = self._table["user_index"].tolist()
        return users

    def of_users(self, wanted: Callable[[int], bool]) -> PreferenceDataset:
        """The examples of some users, given as a condition on their indices."""
        # In an empty table the result would have another type, and pandas take it for columns.
        theirs = self._table["user_index"].map(wanted).astype(bool)
        return PreferenceDataset(
            self._table[theirs], self._reference, self._encoder, reference_text=self._reference_text
        )


def lengths_of(examples: Sequence[PreferenceExample]) -> list[int]:
    """How long the examples are, all in the same unit."""
    if isinstance(examples, PreferenceDataset):
        return examples.lengths
    return [example.length for example in examples]


def users_of(examples: Sequence[PreferenceExample]) -> list[int]:
    """The users of the examples, as indices."""
    if isinstance(examples, PreferenceDataset):
        return examples.users
    return [example.user_index for example in examples]


def of_users(
    examples: Sequence[PreferenceExample], wanted: Callable[[int], bool]
) -> Sequence[PreferenceExample]:
    """The examples of some users, given as a condition on their indices."""
    if isinstance(examples, PreferenceDataset):
        return examples.of_users(wanted)
    return [example for example in examples if wanted(example.user_index)]


# -- batches -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PreferenceBatch:
    """P pairs under each of their conditions.

    Attributes:
        packed: rows of the pairs as their users (if computed), then as the generic user (if
            computed), each with the chosen response before the rejected one.
        users: int64 [P], the pairs' users.
        ref_chosen, ref_rejected, weight: float32 [P].
        as_user, as_generic: which conditions the rows hold.
        drawn: None, or if one condition was drawn for each pair, whether that is its user: bool
            [P]. `as_user` is then true, and each row is under the condition drawn for its pair.
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
    def penalized(self) -> Tensor | None:
        """The users whose regularisers the losses include: each pair's, [P], if users count.

        It does not depend on what was drawn: the regulariser takes no forward pass, so it is never
        sampled.
        """
        return self.users if self.as_user else None

    def user_weight(self, alpha: float) -> float:
        """The weight of the personalised term, given which conditions were computed."""
        if self.as_user and self.as_generic:
            return alpha
        # One condition stands for both (a uniform user model), or the other has no weight, or one
        # was drawn with these weights as probabilities.
        return 1.0 if self.as_user else 0.0

    def by_condition(self, values: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Values of all responses, as (chosen, rejected), each [P], under `user` and `generic`."""
        present = (("user", self.as_user), ("generic", self.as_generic))
        names = [name for name, there in present if there]
        found = {}
        for name, part in zip(names, values.view(-1, len(self), 2), strict=True):
            chosen, rejected = part.unbind(-1)
            found[name] = chosen, rejected
        return found

    def to(self, device: torch.device | str, non_blocking: bool = True) -> PreferenceBatch:
        """The same batch on `device`."""
        return self._map(
            self.packed.to(device), lambda tensor: tensor.to(device, non_blocking=non_blocking)
        )

    def pin_memory(self) -> PreferenceBatch:
        """The same batch in page-locked memory; called by `DataLoader`."""
        return self._map(self.packed.pin_memory(), Tensor.pin_memory)

    def _map(self, packed: Packed, change: Callable[[Tensor], Tensor]) -> PreferenceBatch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {
            name: change(value) for name, value in values.items() if isinstance(value, Tensor)
        }
        return replace(self, packed=packed, **changed)


@dataclass(frozen=True)
class PreferenceCollator:
    """Turns examples into a `PreferenceBatch`.

    Attributes:
        pack: lays rows out for the model (`PersonalizedLM.pack`).
        as_user, as_generic: the conditions to compute; one whose term has weight zero need not be.
            Examples for which one was drawn are computed under that one.
    """

    pack: Callable[[Sequence[Row]], Packed]
    as_user: bool
    as_generic: bool

    def __call__(self, examples: Sequence[PreferenceExample]) -> dict[str, Any]:
        drawn = [one.as_user for one in examples if one.as_user is not None]
        as_user, as_generic = (True, False) if drawn else (self.as_user, self.as_generic)
        rows = []
        if as_user:
            rows += [
                one.row(GENERIC if one.as_user is False else one.user_index) for one in examples
            ]
        if as_generic:
            rows += [one.row(GENERIC) for one in examples]
        batch = PreferenceBatch(
            packed=self.pack(rows),
            users=torch.tensor([one.user_index for one in examples]),
            ref_chosen=torch.tensor([one.ref_chosen for one in examples]),
            ref_rejected=torch.tensor([one.ref_rejected for one in examples]),
            weight=torch.tensor([one.weight for one in examples]),
            as_user=as_user,
            as_generic=as_generic,
            drawn=torch.tensor(drawn) if drawn else None,
        )
        return {"batch": batch}

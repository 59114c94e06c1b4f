"""Preference pairs of random tokens, in the shapes of the data sets of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from prlhf.data import GENERIC
from prlhf.infra.errors import UserError
from prlhf.models.base import BaseModel, Encoder
from prlhf.models.packing import Row
from prlhf.models.personalized import PersonalizedLM
from prlhf.training.dataset import PreferenceExample

SPREAD = 0.4
"""Lengths are uniform within this share of the shape's, either way."""

USERS = 4
USER_TOKENS = 4


@dataclass(frozen=True)
class Shape:
    """Mean tokens of a prompt and of a response."""

    name: str
    prompt: int
    response: int

    @property
    def longest(self) -> tuple[int, int]:
        """Most tokens that a prompt and a response can have."""
        most = 1 + SPREAD
        return round(most * self.prompt), round(most * self.response)

    def scaled(self, factor: float) -> Shape:
        """The same proportions at another size."""
        return replace(
            self,
            prompt=max(2, round(factor * self.prompt)),
            response=max(2, round(factor * self.response)),
        )


SHAPES = {
    "tldr": Shape("TL;DR", 400, 40),
    "psoups": Shape("PSOUPS", 60, 300),
    "prism": Shape("PRISM", 300, 250),
}


def shapes_named(names: str) -> list[Shape]:
    """Shapes by their names, separated by commas.

    Raises:
        UserError: one is not known.
    """
    found = []
    for name in names.split(","):
        if name.strip() not in SHAPES:
            raise UserError(
                f"no shape is called {name.strip()!r}",
                where="--shapes",
                fix=f"use some of {', '.join(SHAPES)}",
            )
        found.append(SHAPES[name.strip()])
    return found


@dataclass(frozen=True)
class Workload:
    """Pairs to train on, with what their users are.

    Attributes:
        pairs: with their reference log-probabilities.
        user_tokens: int64 [USERS + 1, USER_TOKENS]; the plain tokens whose embeddings a user starts
            from, the generic user first: what other trainers put in front of the prompt.
    """

    pairs: list[PreferenceExample]
    user_tokens: torch.Tensor

    def tokens(self, pairs: Sequence[PreferenceExample] | None = None) -> int:
        """Tokens of the plain formulation, without padding.

        Each pair is four sequences there: as its user and as the generic user, chosen and rejected.
        Every variant does the work of these tokens, however it does it.
        """
        chosen = self.pairs if pairs is None else pairs
        return sum(
            2 * (2 * (USER_TOKENS + len(p.prompt)) + len(p.chosen) + len(p.rejected))
            for p in chosen
        )


def draw(shape: Shape, count: int, vocabulary: int, seed: int) -> Workload:
    """Random pairs whose reference log-probabilities are still zero."""
    generator = torch.Generator().manual_seed(seed)

    def text(mean: int) -> list[int]:
        low, high = round((1 - SPREAD) * mean), round((1 + SPREAD) * mean)
        length = int(torch.randint(max(1, low), high + 1, (1,), generator=generator))
        # The first ids are where tokenizers keep their special tokens.
        return torch.randint(8, vocabulary, (length,), generator=generator).tolist()

    pairs = [
        PreferenceExample(
            1 + i % USERS, text(shape.prompt), text(shape.response), text(shape.response), 0.0, 0.0
        )
        for i in range(count)
    ]
    users = torch.randint(8, vocabulary, (USERS + 1, USER_TOKENS), generator=generator)
    return Workload(pairs, users)


def with_reference(workload: Workload, base: BaseModel, encoder: Encoder) -> Workload:
    """The same pairs with what the base model says of their responses behind the prompt alone."""
    reference = PersonalizedLM.reference(base, encoder)
    rows = [Row(GENERIC, p.prompt, [p.chosen, p.rejected]) for p in workload.pairs]
    logps = reference.score(rows, label="reference", max_rows=2).logps.view(-1, 2).tolist()
    pairs = [
        replace(pair, ref_chosen=chosen, ref_rejected=rejected)
        for pair, (chosen, rejected) in zip(workload.pairs, logps, strict=True)
    ]
    return replace(workload, pairs=pairs)

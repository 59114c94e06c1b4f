"""What a model says about responses, and how that is kept while there is more to come."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prlhf.infra import distributed
from prlhf.infra.kept import KeptWork


@dataclass(frozen=True)
class Scores:
    """What a forward pass says about R responses.

    Attributes:
        logps: summed log-probability of each response's tokens, nats, float32 [R].
        tokens: number of tokens of each response, int64 [R].
        features: mean last hidden state over each response's tokens, [R, d], or None: float32 from
            a forward pass; collected from many, float16 and in the main process only.
        penalty: the user model's regulariser of each user asked for, float32 [U], or None.
        last: log-probability of each response's last token, nats, float32 [R], or None.
    """

    logps: Tensor
    tokens: Tensor
    features: Tensor | None = None
    penalty: Tensor | None = None
    last: Tensor | None = None

    @classmethod
    def join(cls, parts: list[Scores]) -> Scores:
        """Results of at least one `collect`, in order. Empties the list: nothing is there twice."""
        count = sum(len(part.logps) for part in parts)
        joined: dict[str, Any] = {
            name: None if each is None else each.new_empty(count, *each.shape[1:])
            for name, each in vars(parts[0]).items()
        }
        end = count
        while parts:
            part = parts.pop()
            start = end - len(part.logps)
            for name, whole in joined.items():
                if whole is not None:
                    whole[start:end] = getattr(part, name)
            end = start
        return cls(**joined)

    def collected(self) -> Scores:
        """The same on the CPU, as it is collected from many batches."""
        on_cpu = {name: each.cpu() for name, each in self.known().items()}
        if self.features is not None:
            on_cpu["features"] = self.features.to("cpu", torch.float16)
        return Scores(**on_cpu)

    def put(self, part: SomeScores) -> None:
        """Write results to their places."""
        found = part.scores.known()
        for name, each in self.known().items():
            if name in found:
                each[part.where] = found[name]

    def known(self) -> dict[str, Tensor]:
        """The attributes that are there, by name."""
        return {name: each for name, each in vars(self).items() if each is not None}


class SomeScores(NamedTuple):
    """Results of some of the responses to score, on the CPU.

    Attributes:
        where: their places among all of them, int64 [R].
        scores: what was found, float16 features.
    """

    where: Tensor
    scores: Scores


class KeptScores:
    """Results that a killed run left, and those that this one adds.

    Args:
        work: where they are kept; None for nowhere.
    """

    def __init__(self, work: KeptWork | None) -> None:
        self._work = work
        self._new: list[SomeScores] = []
        none = torch.zeros(0, dtype=torch.long)
        self._left = SomeScores(none, Scores(torch.zeros(0), none))
        if work is not None and distributed.is_main():
            found = [each for key in work.keys() if (each := work.load(key)) is not None]  # noqa: SIM118
            if found:
                self._left = _in_order([tensors for tensors, _ in found])

    @property
    def found(self) -> int:
        """How many results the killed run left; in processes other than the main one, 0."""
        return len(self._left.where)

    def left(self, first: int, end: int) -> SomeScores:
        """What the killed run found of the responses from `first` to before `end`, from 0 on.

        In processes other than the main one, nothing.
        """
        start, stop = torch.searchsorted(self._left.where, torch.tensor([first, end])).tolist()
        scores = {name: each[start:stop] for name, each in self._left.scores.known().items()}
        return SomeScores(self._left.where[start:stop] - first, Scores(**scores))

    def add(self, part: SomeScores, first: int) -> None:
        """Take results of responses counted from `first`, and keep them when it is time."""
        if self._work is None:
            return
        self._new.append(SomeScores(part.where + first, part.scores))
        if self._work.pace.due():
            self._work.save(secrets.token_hex(8), _together([_tensors(one) for one in self._new]))
            self._new.clear()


def _tensors(part: SomeScores) -> dict[str, Tensor]:
    return {"where": part.where, **part.scores.known()}


def _together(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _in_order(parts: list[dict[str, Tensor]]) -> SomeScores:
    together = _together(parts)
    where, order = together.pop("where").sort()
    return SomeScores(where, Scores(**{name: each[order] for name, each in together.items()}))

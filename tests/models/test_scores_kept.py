"""Scoring that is killed over and over comes to what it would have come to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import prlhf.models.personalized as personalized_module
from killed import until_it_ends
from personal import personalise
from prlhf.infra.kept import KeptWork
from prlhf.models.base import BaseModel
from prlhf.models.packing import Row
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.scores import Scores


def rows(number: int = 17) -> list[Row]:
    """Of all lengths, with one to three responses each, a few users, and one very long."""
    found = [
        Row(i % 4, [33 + i] * (1 + 5 * i % 7), [[40 + i + k] * (1 + k) for k in range(1 + i % 3)])
        for i in range(number)
    ]
    found[5] = Row(2, [50], [[60 + k] * 30 for k in range(40)])  # more than one batch holds
    return found


def same(one: Scores, other: Scores) -> bool:
    first, second = one.known(), other.known()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture
def lm(tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> PersonalizedLM:
    monkeypatch.setattr(personalized_module, "CHUNK", 7)  # so that there are three
    return personalise(tiny_base)


def counted(lm: PersonalizedLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    forward = lm.forward

    def counting(*arguments: Any, **options: Any) -> Scores:
        calls.append(1)
        return forward(*arguments, **options)

    monkeypatch.setattr(lm, "forward", counting)
    return calls


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("looks", [1, 3])
def test_killed_again_and_again(
    lm: PersonalizedLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, features: bool, looks: int
) -> None:
    calls = counted(lm, monkeypatch)
    how: dict[str, Any] = {"label": "test", "features": features, "max_rows": 3}
    expected = lm.score(rows(), **how)
    total = len(calls)
    calls.clear()
    got, killed = until_it_ends(
        lambda pace: lm.score(iter(rows()), total=17, work=KeptWork(tmp_path, pace), **how),
        looks=looks,
    )
    assert same(got, expected)
    assert killed >= total // (looks + 1)
    assert len(calls) == total  # nothing is computed twice
    assert len(list(tmp_path.iterdir())) == killed


def test_what_is_damaged_is_computed_anew(
    lm: PersonalizedLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    how: dict[str, Any] = {"label": "test", "features": True, "max_rows": 3}
    expected = lm.score(rows(), **how)
    until_it_ends(lambda pace: lm.score(rows(), work=KeptWork(tmp_path, pace), **how), looks=1)
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        if number % 2:
            path.write_bytes(path.read_bytes()[:-1])
    calls = counted(lm, monkeypatch)
    capsys.readouterr()
    assert same(lm.score(rows(), work=KeptWork(tmp_path), **how), expected)
    said = capsys.readouterr().err
    assert re.fullmatch(r"test: \d+ responses are known from a run that was stopped\n", said)
    assert len(calls) == len(list(tmp_path.iterdir())) // 2

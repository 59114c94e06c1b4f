"""A reference pass that is killed goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import prlhf.reference as reference_module
from preferences import prepared_pairs
from prlhf.data.reference import Reference
from prlhf.models.base import BaseModel, Encoder
from prlhf.models.personalized import PersonalizedLM
from prlhf.reference import reference_pass

# Three prompts, in parts of one; as many behind users' texts.
PLAIN, BEHIND = (
    [f"{label}, part {number} of 3" for number in (1, 2, 3)]
    for label in ("reference", "reference, with user texts")
)


class Killed(BaseException):
    """What ends a process in the middle."""


def assert_same(one: Reference, other: Reference) -> None:
    assert (one.logps, one.tokens, one.rows) == (other.logps, other.tokens, other.rows)
    assert torch.equal(one.features, other.features)


def test_what_is_done_is_not_done_again(
    tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    limits = 64, 8
    lm = PersonalizedLM.reference(tiny_base, Encoder(tiny_base.tokenizer, *limits))
    reading = Encoder(tiny_base.tokenizer, *limits, 20)
    monkeypatch.setattr(reference_module, "PART", 1)
    expected = reference_pass(lm, [prepared_pairs()], reading)
    assert (len(expected.rows), len(expected.logps)) == (7, 13)

    scored: list[str] = []
    score = lm.score

    def dying(rows: Any, *, label: str, **options: Any) -> Any:
        if len(scored) == 2:
            raise Killed
        scored.append(label)
        return score(rows, label=label, **options)

    monkeypatch.setattr(lm, "score", dying)
    parts = tmp_path / "of_this_run"
    for before, now in (([], PLAIN[:2]), (PLAIN[:2], [PLAIN[2], BEHIND[0]])):
        scored.clear()
        with pytest.raises(Killed):
            reference_pass(lm, [prepared_pairs()], reading, parts=parts)
        assert scored == now
        said = [line for line in capsys.readouterr().err.splitlines() if "already" in line]
        assert said == [f"{label}: already done" for label in before]
    scored.clear()
    resumed = reference_pass(lm, [prepared_pairs()], reading, parts=parts)
    assert scored == BEHIND[1:]
    assert_same(resumed, expected)
    assert len(list(parts.iterdir())) == 6


def test_parts_do_not_change_the_result(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = PersonalizedLM.reference(tiny_base, Encoder(tiny_base.tokenizer, 64, 8))
    whole = reference_pass(lm, [prepared_pairs()])
    monkeypatch.setattr(reference_module, "PART", 2)
    parted = reference_pass(lm, [prepared_pairs()])
    assert (parted.rows, parted.tokens) == (whole.rows, whole.tokens)
    assert parted.logps == pytest.approx(whole.logps, abs=1e-4)
    torch.testing.assert_close(parted.features, whole.features, rtol=1e-4, atol=1e-5)

"""Answers of a run that is killed over and over are those of one that is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import prlhf.sampling as sampling_module
from killed import Clock, until_it_ends
from personal import personalise
from prlhf.infra.kept import INTERVAL, KeptWork, Pace
from prlhf.models.base import BaseModel
from prlhf.models.personalized import PersonalizedLM
from prlhf.sampling import Completion, decoding, sample

PROMPTS = [[33 + i] * (1 + i % 3) for i in range(10)]
USERS = [0, 1, 2, 3, 0] * 2


@pytest.fixture
def lm(tiny_base: BaseModel) -> PersonalizedLM:
    return personalise(tiny_base)


def answer(lm: PersonalizedLM, work: KeptWork | None = None, **how: Any) -> list[Completion]:
    how = {"max_new_tokens": 20, "temperature": 1.0, "stops": [257], **how}
    return sample(
        lm.lm,
        [lm.user_model.tokens + len(prompt) for prompt in PROMPTS],
        lambda row: lm.prefix(USERS[row], PROMPTS[row]),
        config=decoding(**how),
        seed=3,
        batch_size=4,
        label="test",
        tokenizer=lm.base.tokenizer,
        work=work,
    )


@pytest.mark.parametrize(
    ("how", "looks"),
    [
        ({}, 3),
        ({}, 1000),
        ({"temperature": 0.0}, 6),
        ({"no_repeat_ngram": 2, "repetition_penalty": 1.2, "top_p": 0.8}, 6),
    ],
    ids=["sampled", "between batches", "greedy", "penalties"],
)
def test_killed_again_and_again(
    lm: PersonalizedLM, tmp_path: Path, how: dict[str, Any], looks: int
) -> None:
    # Tokens that some answers have early, some late, and some not at all, end them.
    whole = [one.ids for one in answer(lm, **how)]
    stops = sorted({whole[3][5], whole[6][18], whole[8][12]})
    expected = answer(lm, stops=stops, **how)
    assert len({len(one.ids) for one in expected}) > 3
    got, killed = until_it_ends(
        lambda pace: answer(lm, KeptWork(tmp_path, pace), stops=stops, **how), looks=looks
    )
    assert got == expected
    assert killed >= (3 if looks == 1000 else 6)  # after each batch, and within batches
    # Nothing is left of batches that are answered, but what the next run would forget.
    answer(lm, KeptWork(tmp_path), stops=stops, **how)
    assert not list(tmp_path.glob("begun-*"))
    assert not list(tmp_path.glob(".*"))


def test_a_batch_goes_on_from_the_token_where_it_was(
    lm: PersonalizedLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if its answers are longer than a machine lives."""
    tokens, generate = [], lm.lm.generate

    def counting(*arguments: Any, **options: Any) -> Any:
        output = generate(*arguments, **options)
        tokens.append(output.sequences.shape[1] - options["input_ids"].shape[1])
        return output

    monkeypatch.setattr(lm.lm, "generate", counting)
    expected = answer(lm)
    total, uninterrupted = sum(tokens), len(tokens)
    tokens.clear()
    got, killed = until_it_ends(lambda pace: answer(lm, KeptWork(tmp_path, pace)), looks=5)
    assert got == expected
    assert sum(tokens) == total
    assert len(tokens) >= killed > uninterrupted


def test_keeping_changes_no_answer_and_large_states_are_left_alone(
    lm: PersonalizedLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answer(lm)
    work = KeptWork(tmp_path / "one", Pace(Clock(INTERVAL / 4)))
    assert answer(lm, work) == expected
    assert len(work.keys()) == 3
    monkeypatch.setattr(sampling_module, "MOST_BEGUN", 100)
    saved: list[str] = []
    save = KeptWork.save
    monkeypatch.setattr(
        KeptWork, "save", lambda self, key, *rest: (saved.append(key), save(self, key, *rest))[1]
    )
    work = KeptWork(tmp_path / "two", Pace(Clock(INTERVAL / 4)))
    assert answer(lm, work) == expected
    assert len(saved) == 3


def test_damaged_work_is_done_anew(lm: PersonalizedLM, tmp_path: Path) -> None:
    expected = answer(lm)
    work = KeptWork(tmp_path, Pace(Clock(0.0)))
    answer(lm, work)
    first, second, third = sorted(tmp_path.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-3])
    second.write_bytes(b"")
    third.write_bytes(b"\xff" * 40)
    assert answer(lm, work) == expected

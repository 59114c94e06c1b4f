"""The generation benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import generation
from benchmarks.agreement import Disagreement
from benchmarks.generation import Requests, Way, asking, batched, check, measure, uncached
from prlhf.models.base import BaseModel


@pytest.fixture(scope="module")
def requests(tiny_random: BaseModel) -> Requests:
    return asking(tiny_random, 4, 5)


def test_all_ways_give_the_same_answers(requests: Requests) -> None:
    together = batched(4)(requests, range(4))
    assert together == batched(1)(requests, range(4)) == uncached(requests, range(4))
    assert {len(ids) for ids in together} == {5}
    assert len({tuple(ids) for ids in together}) > 1
    assert len({len(prefix) for prefix in requests.prefixes}) > 1


def test_every_way_is_measured(tiny_random: BaseModel) -> None:
    result = measure(tiny_random, rounds=2, requests=4, few=2, new_tokens=3)
    assert [(way["key"], way["requests"]) for way in result["ways"]] == [
        ("batched", 4),
        ("cached", 2),
        ("uncached", 2),
    ]
    for way in result["ways"]:
        assert len(way["seconds_per_token"]) == 2
        assert f"| {way['name']} |" in generation.text(result)
        assert f">{way['name']}</text>" in str(generation.plot(result).render())


def spoiled(change: Callable[[list[int]], list[int]]) -> Way:
    """A way whose second answer is changed."""

    def answer(requests: Requests, which: Sequence[int]) -> list[list[int]]:
        answers: Any = uncached(requests, which)
        answers[1] = change(answers[1])
        return answers

    return Way("wrong", "wrong", answer, 2)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda ids: ids[:-1], "4 tokens, not 5"),
        (lambda ids: [*ids[:-1], (ids[-1] + 1) % 258], "nats from the greedy choice"),
        (lambda ids: [(ids[0] + 1) % 258, *ids[1:]], "nats from the greedy choice"),
    ],
)
def test_wrong_answers_are_refused(
    requests: Requests, change: Callable[[list[int]], list[int]], problem: str
) -> None:
    check(spoiled(lambda ids: ids), requests)
    with pytest.raises(Disagreement, match=problem):
        check(spoiled(change), requests)


def test_answers_to_another_user_are_refused(requests: Requests) -> None:
    swapped = Requests(requests.lm, requests.prefixes[::-1], 5)
    way = Way("wrong", "wrong", lambda _, which: uncached(swapped, which), 4)
    with pytest.raises(Disagreement, match="nats from the greedy choice"):
        check(way, requests)


def test_a_quick_run_says_what_it_found_and_writes_nothing(
    command: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    status, said = command(generation.main, "--quick")
    assert status == 0
    assert "| one by one, not cached |" in said
    assert list(tmp_path.iterdir()) == []
    assert torch.is_grad_enabled()

"""Batches that stay as they are when data change, and what an earlier pass knows of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import prlhf.reference as reference_module
from killed import Killed
from preferences import prepared_pairs
from prlhf.data.prompts import canonical_prompt
from prlhf.data.reference import load_reference
from prlhf.infra.cache import ResultCache
from prlhf.models.base import BaseModel, Encoder
from prlhf.models.packing import MAX_POSITIONS, MAX_ROWS, Row
from prlhf.models.personalized import PersonalizedLM
from prlhf.reference import Batch, distinct_texts, plan_batches, reference_pass

Run = Callable[..., dict[str, bytes]]


@pytest.fixture
def lm(tiny_base: BaseModel) -> PersonalizedLM:
    return PersonalizedLM.reference(tiny_base, Encoder(tiny_base.chat, 64, 200))


def feedback(prompts: Sequence[int]) -> pd.DataFrame:
    """Two responses to each prompt, of lengths from 1 to 120, the same for the same number."""
    rows = []
    for number in prompts:
        draw = random.Random(number)
        words = ["".join(draw.choices("abcdef ", k=draw.randint(1, 120))) for _ in range(2)]
        rows.append((canonical_prompt(f"Question {number}?"), *words))
    return pd.DataFrame(rows, columns=["prompt", "chosen", "rejected"])


@pytest.fixture
def scored(lm: PersonalizedLM, monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """The rows that were computed."""
    found: list[Row] = []
    deal = lm.deal

    def watch(rows: Sequence[Row], batches: Any, progress: Any) -> Any:
        for batch in deal(rows, batches, progress):
            found.extend(rows)
            yield batch

    monkeypatch.setattr(reference_module, "CHUNK", 1)  # a batch at a time
    monkeypatch.setattr(lm, "deal", watch)
    return found


@pytest.fixture
def run(lm: PersonalizedLM, tmp_path: Path) -> Run:
    """The bytes that a pass writes."""

    def run(
        table: pd.DataFrame, cache: ResultCache | None = None, **options: Any
    ) -> dict[str, bytes]:
        directory = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        directory.mkdir()
        reference_pass(lm, [table], directory, cache=cache, **options)
        return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}

    return run


@pytest.fixture
def cache(tmp_path: Path) -> ResultCache:
    return ResultCache(tmp_path / "cache", 2**20, "model")


def entries(cache: ResultCache) -> list[Path]:
    return sorted(path for path in cache.root.rglob("*") if path.is_file())


# -- batches -----------------------------------------------------------------------------------


def names(batches: list[Batch]) -> set[frozenset[str]]:
    return {frozenset(prompt for prompt, _, _ in batch) for batch in batches}


def test_every_request_is_in_one_batch_that_fits(lm: PersonalizedLM) -> None:
    requests = distinct_texts([feedback(range(400))])
    batches = plan_batches(requests, lm.encoder)
    assert sorted(request for batch in batches for request in batch) == requests
    widest = []
    for batch in batches:
        lengths = [
            len(lm.encoder.prompt(r.prompt)) + sum(map(len, map(lm.encoder.response, r.responses)))
            for r in batch
        ]
        assert len(batch) <= MAX_ROWS
        assert max(lengths) <= 1.34 * min(lengths)  # little padding
        assert len(batch) == 1 or len(batch) * (max(lengths) - 2) <= MAX_POSITIONS
        widest.append(max(lengths))
    # Batches are about two thirds full, and the longest rows come first.
    assert sum(map(len, batches)) / len(batches) > 3
    assert max(widest) in widest[:3]


def test_a_prompt_more_changes_one_batch(lm: PersonalizedLM) -> None:
    before = names(plan_batches(distinct_texts([feedback(range(300))]), lm.encoder))
    for new in range(300, 320):
        after = names(plan_batches(distinct_texts([feedback([*range(300), new])]), lm.encoder))
        gone, come = before - after, after - before
        assert len(gone) <= 1
        # It stands where it stood, or falls into parts that fit.
        old = frozenset().union(*gone)
        assert frozenset().union(*come) == old | {canonical_prompt(f"Question {new}?")}


def test_many_responses_to_a_prompt_are_several_requests(lm: PersonalizedLM) -> None:
    prompt = canonical_prompt("Why?")
    table = pd.DataFrame(
        [(prompt, f"{i:03}" * 60, f"{i:03}" * 61) for i in range(20)],
        columns=["prompt", "chosen", "rejected"],
    )
    [request] = distinct_texts([table])
    batches = plan_batches([request], lm.encoder)
    parts = [each for batch in batches for each in batch]
    assert len(parts) == 8  # of five responses of 200 tokens each
    assert sorted(r for part in parts for r in part.responses) == request.responses


# -- the cache ---------------------------------------------------------------------------------


def test_the_results_do_not_tell_whether_there_was_a_cache(
    run: Run, cache: ResultCache, scored: list[Row]
) -> None:
    expected = run(feedback(range(40)))
    assert run(feedback(range(30)), cache) == run(feedback(range(30)))
    assert run(feedback(range(40)), cache) == expected
    scored.clear()
    assert run(feedback(range(40)), cache) == expected
    assert scored == []


def test_only_the_batch_of_a_new_row_is_computed(
    run: Run, cache: ResultCache, scored: list[Row], lm: PersonalizedLM
) -> None:
    run(feedback(range(100)), cache)
    scored.clear()
    table = feedback(range(101))
    run(table, cache)
    [batch] = [
        batch
        for batch in plan_batches(distinct_texts([table]), lm.encoder)
        if any("Question 100?" in prompt for prompt, _, _ in batch)
    ]
    new = lm.encoder.prompt(canonical_prompt("Question 100?"))
    assert new in [row.prompt for row in scored]
    # The batch, and what fell out of it if it was full.
    assert len(batch) <= len(scored) <= MAX_ROWS + 1
    # Another response to a known prompt: its old batch and its new one.
    scored.clear()
    more = feedback([7]).assign(chosen="and another thing")
    run(pd.concat([table, more]), cache)
    assert lm.encoder.prompt(canonical_prompt("Question 7?")) in [row.prompt for row in scored]
    assert len(scored) <= 2 * MAX_ROWS


def test_a_killed_pass_goes_on_where_it_was(
    run: Run,
    cache: ResultCache,
    scored: list[Row],
    lm: PersonalizedLM,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reading = Encoder(lm.base.chat, 64, 200, 20)
    expected = run(prepared_pairs(), reading=reading)
    total = len(scored)
    scored.clear()
    collect, calls = lm.collect, []

    def dying(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) == 4:
            raise Killed
        return collect(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(lm, "collect", dying)
        run(prepared_pairs(), cache, reading=reading)
    done = len(scored)
    assert 0 < done < total
    capsys.readouterr()
    assert run(prepared_pairs(), cache, reading=reading) == expected
    assert len(scored) == total
    assert capsys.readouterr().err.splitlines() == [
        "reference: 3 of 3 rows are known from an earlier pass",
        "reference, with user texts: 1 of 3 rows are known from an earlier pass",
    ]


def test_a_pass_that_is_killed_in_every_batch_loses_that_batch_alone(
    lm: PersonalizedLM, cache: ResultCache, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with many batches to a chunk."""
    table = feedback(range(60))
    expected = run(table)
    batches = len(plan_batches(distinct_texts([table]), lm.encoder))
    assert batches > 4
    forward, calls = lm.forward, [0]

    def dying(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] % 2 == 0:  # each life computes one batch, and ends in the next
            raise Killed
        return forward(*arguments, **options)

    monkeypatch.setattr(lm, "forward", dying)
    for _ in range(batches - 1):
        with pytest.raises(Killed):
            run(table, cache)
    assert run(table, cache) == expected
    assert calls == [2 * batches - 1]


def test_damaged_entries_are_computed_anew(
    run: Run, cache: ResultCache, scored: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = run(feedback(range(40)), cache)
    files = entries(cache)
    assert len(files) > 4
    flipped = bytearray(files[0].read_bytes())
    flipped[-1] ^= 1
    files[0].write_bytes(flipped)
    files[1].write_bytes(b"")
    files[2].write_bytes(files[2].read_bytes()[:-5])
    scored.clear()
    assert run(feedback(range(40)), cache) == expected
    assert len(scored) > 0
    said = capsys.readouterr().err
    assert [f"{path} is damaged" in said for path in files[:4]] == [True, True, True, False]
    scored.clear()
    assert run(feedback(range(40)), cache) == expected
    assert scored == []


def test_entries_without_features_do_for_who_wants_none(
    run: Run, cache: ResultCache, scored: list[Row]
) -> None:
    table = feedback(range(20))
    expected = run(table)
    plain = run(table, cache, features=False)
    assert plain["logps.parquet"] == expected["logps.parquet"]
    scored.clear()
    assert run(table, cache) == expected
    assert len(scored) == 20
    scored.clear()
    assert run(table, cache, features=False) == plain
    assert scored == []


def test_results_of_another_model_are_not_used(
    run: Run, cache: ResultCache, scored: list[Row]
) -> None:
    run(feedback(range(10)), cache)
    scored.clear()
    run(feedback(range(10)), ResultCache(cache.root, cache.limit, "another"))
    assert len(scored) == 10


def test_a_cache_that_is_full_forgets_what_was_not_used_for_longest(
    run: Run, cache: ResultCache, scored: list[Row]
) -> None:
    expected = run(feedback(range(30)), cache)
    size = sum(path.stat().st_size for path in entries(cache))
    small = ResultCache(cache.root, size // 2, cache.of)
    assert run(feedback(range(30)), small) == expected
    assert 0 < sum(path.stat().st_size for path in entries(cache)) <= size // 2


def test_results_do_not_depend_on_who_is_beside_a_text(run: Run, tmp_path: Path) -> None:
    """But for rounding."""
    run(feedback(range(30)))
    run(feedback(range(50)))
    few, many = (load_reference(path) for path in sorted(tmp_path.glob("out-*")))
    assert few.logps.keys() <= many.logps.keys()
    assert {key: many.logps[key] for key in few.logps} == pytest.approx(few.logps, abs=1e-3)

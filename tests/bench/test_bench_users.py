"""The benchmark of many users."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import users
from benchmarks.agreement import Disagreement
from benchmarks.clock import timed_epoch
from benchmarks.users import Case, fit, make, measure, moments, only_its_rows
from prlhf.models.base import BaseModel

COUNTS = [10, 1000]


@pytest.fixture(scope="module")
def result(tiny_random: BaseModel) -> dict[str, Any]:
    return measure(tiny_random, COUNTS, rounds=2, steps=2)


@pytest.fixture(params=["cluster", "individual"])
def trained(request: pytest.FixtureRequest, tiny_random: BaseModel, tmp_path: Path) -> Case:
    case = make(tiny_random, request.param, 50, 2, tmp_path)
    timed_epoch(case.trainer)
    return case


def test_tables_grow_with_users_and_steps_do_not(result: dict[str, Any]) -> None:
    width = {"cluster": 2, "individual": 4 * 32}
    assert [kind["kind"] for kind in result["kinds"]] == list(width)
    for kind in result["kinds"]:
        few, many = kind["users"]
        assert [few["users"], many["users"]] == COUNTS
        for row in (few, many):
            assert row["table_bytes"] == 4 * (row["users"] + 1) * width[kind["kind"]]
            # Both moments, and the number of steps of each row.
            assert row["optimiser_bytes"] == 2 * row["table_bytes"] + 4 * (row["users"] + 1)
            assert row["checkpoint_bytes"] > row["model_bytes"] > row["table_bytes"]
            assert len(row["seconds"]) == 2
        # What a step allocates does not depend on time, and tells a pass over the whole table.
        grown = many["peak_bytes"] - few["peak_bytes"]
        assert abs(grown) < 0.1 * (many["table_bytes"] - few["table_bytes"])


def test_the_table_and_the_plot_have_every_number_of_users(result: dict[str, Any]) -> None:
    text = users.text(result)
    assert text.count("| 1,000 |") == 2
    assert str(users.plot(result).render()).count(">1,000 users</text>") == 2


def test_training_touches_the_rows_of_its_users_only(trained: Case) -> None:
    assert 0 < len(trained.in_batches()) < 50
    only_its_rows(trained)


@pytest.mark.parametrize("tensor", [0, 1, 2])
def test_a_row_of_another_user_is_refused(trained: Case, tensor: int) -> None:
    stranger = min(set(range(1, 51)) - trained.in_batches())
    with torch.no_grad():
        [trained.table, *moments(trained)][tensor][stranger, 0] = 1e-8
    with pytest.raises(Disagreement, match=f"1 rows of the {'optimiser' if tensor else 'table'}"):
        only_its_rows(trained)


def test_a_row_left_out_is_refused(trained: Case) -> None:
    with torch.no_grad():
        trained.table[min(trained.in_batches())] = 0
    with pytest.raises(Disagreement, match="1 rows of the table"):
        only_its_rows(trained)


def test_what_does_not_fit_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, result: dict[str, Any]
) -> None:
    """Table and two moments at 4 tokens of 576 floats: 27,648 bytes a user; half is to be had."""
    monkeypatch.setattr(
        "psutil.virtual_memory", lambda: SimpleNamespace(available=2 * 27_648 * 1010)
    )
    left_out = [{"users": 1_000_000, "bytes": 27_648_000_000}]
    assert fit("individual", 576, [10, 1000, 1_000_000]) == ([10, 1000], left_out)
    changed = {**result, "kinds": [{**result["kinds"][1], "left_out": left_out}]}
    assert "1,000,000 users: not measured, needs 27.6 GB of memory." in users.text(changed)


def test_a_quick_run_says_what_it_found_and_writes_nothing(
    command: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    status, said = command(users.main, "--quick")
    assert status == 0
    assert said.count("| 1,000 |") == 2
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_one_line(command: Callable[..., tuple[int, str]]) -> None:
    status, said = command(users.main, "--model", "random:tiny", "--users", "10,many")
    assert status == 2
    assert said == "error: --users: '10,many' are no numbers of users (e.g. 10,1000)\n"

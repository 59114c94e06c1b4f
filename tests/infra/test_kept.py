"""Work is kept when it is time, whole or not at all, and never at the cost of the work itself."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from killed import Clock
from prlhf.infra.kept import INTERVAL, SHARE, KeptWork, Pace


class Hand(Clock):
    """A clock that goes on only when somebody moves it."""

    def __init__(self) -> None:
        super().__init__(0.0)


def test_it_is_time_after_the_interval() -> None:
    clock = Hand()
    pace = Pace(clock)
    clock.now = INTERVAL - 1
    assert not pace.due()
    clock.now = INTERVAL
    assert pace.due()
    with pace.keeping():
        clock.now += 2
    clock.now += INTERVAL - 1
    assert not pace.due()
    clock.now += 1
    assert pace.due()


@pytest.mark.parametrize("cost", [0.1, 5.0, 100.0])
def test_keeping_takes_its_share_of_the_time_at_most(cost: float) -> None:
    clock = Hand()
    pace = Pace(clock)
    kept, worked = 0.0, 0.0
    for _ in range(20):
        while not pace.due():
            clock.now += 1.0
            worked += 1.0
        with pace.keeping():
            clock.now += cost
            kept += cost
    # The first time nobody knows yet what it costs.
    assert kept - cost <= SHARE * worked
    assert worked / 20 >= INTERVAL


def test_work_comes_back(tmp_path: Path) -> None:
    work = KeptWork(tmp_path / "run")
    assert work.load("a") is None
    assert work.keys() == []
    table = torch.arange(6.0).reshape(2, 3)
    work.save("a", {"x": table.T, "n": torch.tensor(3)}, {"of": [1, None]})
    work.save("b", {})
    work.part("inside").save("c", {})
    assert work.keys() == ["a", "b"]
    found = KeptWork(tmp_path / "run").load("a")
    assert found is not None
    assert torch.equal(found[0]["x"], table.T)
    assert found[0]["n"] == 3
    assert found[1] == {"of": [1, None]}
    assert work.load("b") == ({}, None)
    work.save("a", {}, "newer")
    assert work.load("a") == ({}, "newer")
    work.drop("a")
    work.drop("a")
    assert work.keys() == ["b"]


def test_what_is_damaged_is_as_good_as_absent(tmp_path: Path) -> None:
    work = KeptWork(tmp_path)
    work.save("a", {"x": torch.ones(5)}, 1)
    path = tmp_path / "a.safetensors"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert work.load("a") is None
    path.write_bytes(b"\xff" * len(whole))
    assert work.load("a") is None


def test_a_place_that_cannot_be_written_to_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    work = KeptWork(tmp_path / "file")
    work.save("a", {"x": torch.ones(5)})
    assert work.load("a") is None


def save_for_ever(directory: Path) -> None:
    work, number = KeptWork(directory), 0
    while True:
        number += 1
        work.save("state", {"x": torch.full((20_000,), float(number))}, number)


def test_sigkill_at_any_moment_leaves_something_whole(tmp_path: Path) -> None:
    kept = []
    for pause in np.random.default_rng(0).uniform(0, 0.05, 12):
        child = os.fork()
        if child == 0:
            save_for_ever(tmp_path)
        time.sleep(pause)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = KeptWork(tmp_path).load("state")
        if found is not None:
            assert (found[0]["x"] == found[1]).all()
            kept.append(found[1])
    # What the killed ones left goes when there is something to keep again.
    for left in tmp_path.glob(".*"):
        os.utime(left, (0, 0))
    KeptWork(tmp_path).save("state", {})
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]

"""The slot that a killed run leaves taken, in the database of servers that end with their runs."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

SLOTS = """
import sys
from prefect import get_client
from flows.limits import GPU, gpu_limit
from flows.server import reached

with reached(), get_client(sync_client=True) as client, gpu_limit(client):
    name = f"tag:{GPU}"
    print("taken", int(client.read_global_concurrency_limit_by_name(name).active_slots))
    if sys.argv[1:] == ["take"]:
        client.increment_concurrency_slots([name], 1, "concurrency")
"""


def slots(home: Path, *arguments: str) -> str:
    """What a run with a server of its own finds; with `take` it leaves a slot taken."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    run = subprocess.run(
        [sys.executable, "-c", SLOTS, *arguments],
        env=kept | {"PREFECT_HOME": str(home), "DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.e2e
def test_a_slot_that_a_killed_run_had_is_freed_when_no_other_run_is_going_on(tmp_path: Path):
    assert slots(tmp_path, "take") == "taken 0"
    with (tmp_path / "prlhf.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert slots(tmp_path) == "taken 1"
    assert slots(tmp_path) == "taken 0"

"""Ctrl-C and kill -9 during training: the next run goes on, with the same result in the end."""

from __future__ import annotations

import re
import signal

import pytest
from e2e_data import OTHER_ALPHA
from e2e_project import RESULTS, Project, signal_at_checkpoint

pytestmark = pytest.mark.e2e

TRAIN = ("dvc", "repro", "train@pdpo")
MADE = ("models/pdpo", "reports/curves/pdpo.csv", "reports/curves/pdpo.json")


def resumed(err: str) -> int | None:
    found = re.search(r"^train pdpo: resuming from step (\d+)$", err, re.MULTILINE)
    return int(found.group(1)) if found else None


def test_an_interrupted_run_resumes_from_its_own_last_checkpoint(
    finished: Project, changed: Project, project: Project
):
    project.forget("train@pdpo", *MADE)
    others = project.digests(*RESULTS)

    # Ctrl-C reaches DVC and the stage alike.
    result, first = signal_at_checkpoint(project, signal.SIGINT, *TRAIN)
    assert result.status not in (0, -signal.SIGINT)
    assert result.errors == ["error: interrupted"]
    assert f"train pdpo: step {first} is kept; the next run goes on from there\n" in result.err
    assert "Traceback" not in result.err
    assert project.digests(*RESULTS) == others

    # A run with other parameters starts at the beginning. Nothing can catch its end.
    project.set({"train.alpha": OTHER_ALPHA})
    result, second = signal_at_checkpoint(project, signal.SIGKILL, *TRAIN)
    assert result.status == -signal.SIGKILL
    assert "train@pdpo: started\n" in result.err
    assert resumed(result.err) is None
    assert project.digests(*RESULTS) == others

    # Each goes on from its own checkpoint, to the end that it would have come to.
    result = project.run(*TRAIN)
    assert resumed(result.err) == second
    assert project.digests(*MADE) == changed.digests(*MADE)
    project.set({"train.alpha": 0.5})
    result = project.run(*TRAIN)
    assert resumed(result.err) == first
    assert project.digests(*RESULTS) == finished.digests(*RESULTS)
    assert list((project / ".cache/checkpoints").iterdir()) == []

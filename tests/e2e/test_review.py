"""A change of parameters on its way: proposed, found not to be run, run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from e2e_data import OTHER_ALPHA, SMALL
from e2e_project import STAGES, Project

pytestmark = pytest.mark.e2e

# What a run leaves for Git.
RECORDS = ("params.yaml", "dvc.lock", "reports/evaluation.json", "reports/metrics.json")
RECORDS += ("reports/headline.json", "reports/per_user.csv", "reports/per_user_wins.csv")
RECORDS += ("reports/plots",)


def commit(project: Project) -> None:
    who = ("-c", "user.name=Someone", "-c", "user.email=someone@example.org")
    project.run("git", "add", "--all")
    project.run("git", *who, "commit", "--quiet", "--message", "a change")


def test_a_clone_without_cache_tells_whether_the_change_was_run(
    finished: Project, changed: Project, tmp_path: Path
):
    origin = finished.copy_to(tmp_path / "origin")
    commit(origin)
    origin.run("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone")
    assert not (clone / "models/base").exists()
    good = f"dvc.lock: records all {len(STAGES)} stages as they are\n"
    assert clone.run("prlhf", "lock", "check").out == good

    clone.set({"train.alpha": OTHER_ALPHA})
    reason = f"train.alpha is {OTHER_ALPHA}, not {SMALL['train.alpha']}"
    assert clone.run("prlhf", "lock", "check", status=2).errors[:3] == [
        f"error: dvc.lock: train@dpo is stale: {reason}",
        f"error: dvc.lock: train@pdpo is stale: {reason}",
        "error: dvc.lock: report is stale: params.yaml has changed",
    ]
    found = json.loads(clone.run("prlhf", "params", "diff", "--json").out)
    assert {each["kind"] for each in found["warnings"]} == {"gpu", "lock"}

    for name in RECORDS:
        source = changed / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        if source.is_dir():
            shutil.rmtree(clone / name)
        copy(source, clone / name)
    assert clone.run("prlhf", "lock", "check").out == good
    commit(clone)
    found = json.loads(clone.run("prlhf", "params", "diff", "HEAD~1", "HEAD", "--json").out)
    assert [each["kind"] for each in found["warnings"]] == ["gpu"]
    assert {metric["file"] for metric in found["metrics"]} >= {"reports/metrics.json"}
    for metric in found["metrics"]:
        old, new = (each.json(metric["file"]) for each in (finished, changed))
        for step in metric["key"].split("."):
            old, new = old[step], new[step]
        assert (metric["old"], metric["new"]) == (old, new)

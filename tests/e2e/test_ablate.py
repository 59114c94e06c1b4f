"""`prlhf ablate` on a tiny model: its table against its experiments' own files, and resuming."""

from __future__ import annotations

import csv
import fcntl
import os
import signal
import subprocess
import time
from io import StringIO
from pathlib import Path

import pytest
from e2e_project import PATIENCE, Project, Result, stop

pytestmark = pytest.mark.e2e

KINDS = """\
# Two kinds of user model.
title: Kinds
method: pdpo
seeds: [7]
settings:
  cluster: {methods.pdpo.kind: cluster}
  individual: {methods.pdpo.kind: individual}
"""
BROKEN = """\
# The second setting has no model.
title: Broken
method: pdpo
seeds: [7]
settings:
  good: {methods.pdpo.kind: cluster}
  bad: {model.name: ./nowhere}
"""
PLACE = ".dvc/tmp/ablations"


def git(project: Project, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments],
        cwd=project.path,
        env=project.environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def experiments(project: Project) -> dict[str, str]:
    """Name -> commit of DVC's experiments."""
    lines = git(project, "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps")
    found = dict(line.split() for line in lines.splitlines())
    return {name.rpartition("/")[2]: commit for name, commit in found.items()}


def interrupted(project: Project) -> Result:
    """`prlhf ablate kinds`, stopped by Ctrl-C's signal when a training has written a checkpoint."""
    process = project.start("prlhf", "ablate", "kinds")
    deadline = time.monotonic() + PATIENCE
    try:
        while not list(project.path.glob(f"{PLACE}/copy-1/.cache/checkpoints/*/*/complete")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        stop(process)
    return Result(process.returncode, out, err)


@pytest.fixture(scope="module")
def project(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """`finished`, committed, with two ablations."""
    project = finished.copy_to(tmp_path_factory.mktemp("ablations") / "project")
    for name, text in (("kinds", KINDS), ("broken", BROKEN)):
        (project / f"experiments/ablations/{name}.yaml").write_text(text, encoding="utf-8")
    git(project, "add", "--all")
    who = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
    git(project, *who, "commit", "--quiet", "--message", "All stages ran")
    return project


@pytest.fixture(scope="module")
def runs(project: Project) -> list[tuple[Result, dict[str, str]]]:
    """The ablation interrupted, run to its end, and run again; each with the experiments after."""
    found = [(interrupted(project), experiments(project))]
    for _ in range(2):
        result = project.run("prlhf", "ablate", "kinds")
        found.append((result, experiments(project)))
    return found


def test_ctrl_c_leaves_what_is_finished(project: Project, runs):
    result, after = runs[0]
    assert result.status == 130
    assert result.err.splitlines()[-1] == "error: interrupted"
    assert "1/2 kinds: cluster, seed 7\n" in result.err
    assert "2/2 kinds: individual, seed 7, ETA " in result.err
    assert list(after) == ["ablate-kinds-cluster-7"]
    # Nothing runs any more: the lock goes with the last process that has it.
    with (project / f"{PLACE}/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_rest_goes_on_from_there(project: Project, runs):
    result, after = runs[1]
    assert "kinds: 1 of 2 runs are there already\n2/2 kinds: individual, seed 7\n" in result.err
    assert "cluster, seed" not in result.err
    assert after == runs[0][1] | {"ablate-kinds-individual-7": after["ablate-kinds-individual-7"]}
    log = (project / f"{PLACE}/logs/ablate-kinds-individual-7.log").read_text(encoding="utf-8")
    assert "train pdpo: resuming from step " in log
    assert "Running stage 'train@dpo'" not in log
    assert not list((project / PLACE).glob("copy-*"))


def test_nothing_runs_twice(runs):
    result, after = runs[2]
    assert after == runs[1][1]
    assert "kinds: 2 of 2 runs are there already" in result.err
    assert "seed 7\n" not in result.err.partition("written")[0]
    assert result.out == runs[1][0].out


def test_the_table_is_that_of_the_experiments(project: Project, runs):
    commits = runs[2][1]
    by_user = {}
    for setting in ("cluster", "individual"):
        text = git(project, "show", f"{commits[f'ablate-kinds-{setting}-7']}:reports/per_user.csv")
        by_user[setting] = list(csv.DictReader(StringIO(text)))
        params = git(project, "show", f"{commits[f'ablate-kinds-{setting}-7']}:params.yaml")
        assert f"kind: {setting}" in params.partition("  pdpo:")[2].partition("text:")[0]

    def mean(setting: str, column: str, seen: str = "True") -> float:
        values = [float(row[column]) for row in by_user[setting] if row["seen"] == seen]
        return sum(values) / len(values)

    shown = (project / "reports/ablations/kinds.csv").read_text(encoding="utf-8")
    rows = {row["setting"]: row for row in csv.DictReader(StringIO(shown))}
    assert list(rows) == ["cluster", "individual"]
    for setting, row in rows.items():
        served, generic = mean(setting, "accuracy_pdpo"), mean(setting, "accuracy_pdpo_generic")
        assert float(row["accuracy"]) == pytest.approx(served, abs=1e-5)
        assert float(row["generic"]) == pytest.approx(generic, abs=1e-5)
        cost = generic - mean(setting, "accuracy_dpo")
        assert float(row["cost"]) == pytest.approx(cost, abs=1e-5)
        unseen = mean(setting, "accuracy_pdpo", "False")
        assert float(row["unseen"]) == pytest.approx(unseen, abs=1e-5)
        assert float(row["accuracy_low"]) <= served <= float(row["accuracy_high"])
    difference = mean("individual", "accuracy_pdpo") - mean("cluster", "accuracy_pdpo")
    assert float(rows["individual"]["difference"]) == pytest.approx(difference, abs=1e-5)
    assert rows["cluster"]["difference"] == ""


def test_the_workspace_is_as_it_was(project: Project, runs):
    names = [line[3:] for line in git(project, "status", "--porcelain").splitlines()]
    assert names == ["reports/ablations/"]
    written = sorted(path.name for path in (project / "reports/ablations").iterdir())
    assert written == ["kinds.csv", "kinds.json", "kinds.md", "kinds.svg"]
    assert git(project, "stash", "list") == ""


def test_a_run_that_fails(project: Project, runs):
    result = project.run("prlhf", "ablate", "broken", status=2)
    assert [line.partition(" (")[0] for line in result.errors] == [
        "error: bad, seed 7: model.name: './nowhere' is neither a built-in model nor a directory",
        "error: prlhf ablate: 1 of 2 runs failed",
    ]
    assert "ablate-broken-good-7" in experiments(project)
    assert "ablate-broken-bad-7" not in experiments(project)
    assert "good " in result.out
    assert "broken: 1 of 2 runs missing; nothing is written" in result.err
    assert not (project / "reports/ablations/broken.md").exists()


def test_what_is_not_committed(project: Project, runs, tmp_path: Path):
    changed = project.copy_to(tmp_path / "project")
    changed.edit("params.yaml", lambda text: text.replace("seed: 7", "seed: 9", 1))
    result = changed.run("prlhf", "ablate", "kinds", status=2)
    assert result.errors == [
        "error: prlhf ablate: params.yaml changed since the last commit, from which the runs start "
        "(commit first, or `git stash` the change)"
    ]
    # What no stage reads may change, and be committed: the runs stay good.
    git(changed, "checkout", "params.yaml")
    changed.edit("README.md", lambda text: f"{text}\nMore.\n")
    who = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
    git(changed, *who, "commit", "--quiet", "--all", "--message", "More to read")
    assert "kinds: 2 of 2 runs are there already" in changed.run("prlhf", "ablate", "kinds").err
    # What a stage reads makes them anew.
    changed.edit("src/prlhf/metrics/tables.py", lambda text: f"{text}\n# Changed.\n")
    git(changed, *who, "commit", "--quiet", "--all", "--message", "Other code")
    result = changed.run("prlhf", "ablate", "kinds", "--no-run")
    assert result.err.splitlines() == ["kinds: no runs to compare"]

"""`dvc exp run` with the flags of an experiment, and what DVC shows of its runs."""

from __future__ import annotations

import csv
import json
import subprocess
from io import StringIO
from pathlib import Path

import pytest
from e2e_project import Project, Result

pytestmark = pytest.mark.e2e

COLUMNS = {"dpo.accuracy", "pdpo.accuracy", "pdpo.worst_user", "base.words", "pdpo.broken"}
OVERLAY = """\
# Narrower intervals, and fewer samples: evaluated anew, and nothing else.
evaluate:
  confidence: 0.8
  sample_prompts: 1
"""


@pytest.fixture(scope="module")
def run(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Result]:
    """`finished`, committed, after an experiment named `narrow`; and what that printed."""
    project = finished.copy_to(tmp_path_factory.mktemp("experiments") / "project")
    (project / "experiments/narrow.yaml").write_text(OVERLAY, encoding="utf-8")
    who = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
    for arguments in (("add", "--all"), (*who, "commit", "--quiet", "--message", "All stages ran")):
        git = ["git", *arguments]
        subprocess.run(git, cwd=project.path, env=project.environment(), check=True)
    # DVC makes commits of its experiments.
    for key, value in (("user.name", "tests"), ("user.email", "tests@localhost")):
        git = ["git", "config", key, value]
        subprocess.run(git, cwd=project.path, env=project.environment(), check=True)
    line = "dvc exp run --name narrow $(prlhf experiment flags narrow)"
    return project, project.run("bash", "-c", line)


def test_an_experiment_runs_what_its_changes_affect(run: tuple[Project, Result]):
    project, result = run
    assert result.ran == ["evaluate", "report"]
    metrics, samples = (project.json(f"reports/{n}.json") for n in ("metrics", "evaluation"))
    assert metrics["interval"]["level"] == 0.8
    assert len(samples["samples"]["prompts"]) == 1


def test_dvc_shows_the_key_figures_first(run: tuple[Project, Result]):
    project, _ = run
    header, *rows = csv.reader(StringIO(project.run("dvc", "exp", "show", "--csv").out))
    assert header[:5] == ["Experiment", "rev", "typ", "Created", "parent"]
    figures = [name for name in header[5:] if name.startswith(("base.", "dpo.", "pdpo."))]
    assert set(figures) > COLUMNS
    assert header[5 : 5 + len(figures)] == figures
    experiment = dict(zip(header, next(row for row in rows if row[0] == "narrow"), strict=True))
    assert experiment["evaluate.confidence"] == "0.8"
    headline = project.json("reports/headline.json")
    assert float(experiment["pdpo.nll"]) == pytest.approx(headline["pdpo"]["nll"])


def test_the_table_has_what_differs_and_no_details(run: tuple[Project, Result]):
    project, _ = run
    header, *rows = csv.reader(StringIO(project.run("prlhf", "experiment", "table", "--csv").out))
    assert {"evaluate.confidence", "evaluate.sample_prompts"} <= set(header)
    assert "train.alpha" not in header
    assert not [name for name in header if name.startswith(("interval.", "accuracy.", "counts."))]
    assert [row[0] for row in rows if row[0] == "narrow"] == ["narrow"]
    assert project.run("prlhf", "experiment", "table").out.startswith("| Experiment ")


def test_revisions_are_compared(run: tuple[Project, Result], tmp_path: Path):
    project, _ = run
    params = json.loads(project.run("dvc", "params", "diff", "HEAD", "narrow", "--json").out)
    assert params == {
        "params.yaml": {
            "evaluate.confidence": {"old": 0.95, "new": 0.8, "diff": pytest.approx(-0.15)},
            "evaluate.sample_prompts": {"old": 2, "new": 1, "diff": -1},
        }
    }
    command = ("dvc", "metrics", "diff", "HEAD", "narrow", "--all", "--json", "--targets")
    shown = json.loads(project.run(*command, "reports/headline.json").out)
    assert set(shown["reports/headline.json"]) > COLUMNS
    project.run("dvc", "plots", "diff", "HEAD", "narrow", "--out", str(tmp_path / "plots"))
    page = (tmp_path / "plots/index.html").read_text(encoding="utf-8")
    for title in ("Training loss", "Training accuracy", "per_user_accuracy", "lengths", "embedd"):
        assert title in page
    for name in ('"rev": "HEAD"', '"rev": "narrow"', '"method": "pdpo"'):
        assert name in page

"""A change re-runs what it can affect, and no more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from e2e_project import RESULTS, STAGES, Project, Result

pytestmark = pytest.mark.e2e

TRAIN = {"train@dpo", "train@pdpo"}
GENERATE = {"generate@base", "generate@dpo", "generate@pdpo"}
SCORE = {"score@base", "score@dpo", "score@pdpo"}
AFTER_TRAIN = (GENERATE | SCORE) - {"generate@base", "score@base"}
AFTER_TRAIN |= {"judge", "evaluate", "report"}

# What is stale at once; what follows from changed results shows only as they change. For edits of
# the code tests/stages/test_edits.py has more of this.
MODULES = {
    "src/prlhf/models/user_model.py": {"reference", "pretrain_user_model"}
    | TRAIN
    | GENERATE
    | SCORE,
    "src/prlhf/judging/judges.py": {"judge"},
    "src/prlhf/report/templates/report.css": {"report"},
    "src/prlhf/infra/errors.py": set(),
}
# The report shows all of params.yaml.
PARAMETERS = {
    ("seed", 8): set(STAGES) - {"base_model", "reference"} - SCORE,
    ("split.test", 0.25): {"validate", "report"},
    ("methods.pdpo.kind", "individual"): {"pretrain_user_model", "train@pdpo", "report"},
    ("generate.temperature", 1.0): GENERATE | {"report"},
    ("judge.unseen_users", 1): {"judge", "report"},
    ("evaluate.margin", 0.05): {"evaluate", "report"},
}


def stale(project: Project) -> set[str]:
    return set(json.loads(project.run("dvc", "status", "--json").out))


def test_another_alpha_trains_anew_and_goes_on_from_there(
    finished: Project, changed: Project, second_run: Result
):
    assert set(second_run.ran) == TRAIN | AFTER_TRAIN
    before, after = finished.digests(*RESULTS), changed.digests(*RESULTS)
    assert before.keys() == after.keys()
    differing = {name for name in before if before[name] != after[name]}
    assert "models/pdpo/adapter_model.safetensors" in differing
    untouched = ("data/ingested", "data/prepared", "data/reference", "models/base")
    untouched += ("models/user_model", "reports/validation", "reports/pretrain")
    assert not any(name.startswith(untouched) or "/base" in name for name in differing)


def test_going_back_to_earlier_parameters_restores_what_dvc_kept(
    finished: Project, changed: Project, tmp_path: Path
):
    project = changed.copy_to(tmp_path / "project")
    shutil.copy(finished / "params.yaml", project / "params.yaml")
    assert set(project.run("dvc", "repro").ran) <= project.not_kept()
    assert project.digests(*RESULTS) == finished.digests(*RESULTS)


def test_another_confidence_only_evaluates_anew(finished: Project, project: Project):
    project.set({"evaluate.confidence": 0.8})
    assert project.run("dvc", "repro").ran == ["evaluate", "report"]
    interval = project.json("reports/metrics.json")["interval"]
    assert interval["level"] == 0.8
    models = ("models", "data/generated", "data/scores")
    assert project.digests(*models) == finished.digests(*models)


def test_another_seed_splits_anew_and_leaves_the_base_model(project: Project):
    project.set({"seed": 8})
    result = project.run("dvc", "repro", "reference")
    assert sorted(result.ran) == ["ingest", "reference", "validate"]
    # Once there are other data, the scores and the rest of the stages have to follow.
    assert stale(project) == set(STAGES) - {"base_model", "ingest", "validate", "reference"}


def test_stages_are_stale_when_what_they_use_has_changed(project: Project):
    found, wanted = {}, {}
    for name, stages in MODULES.items():
        text = (project / name).read_text(encoding="utf-8")
        (project / name).write_text(f"{text}\n", encoding="utf-8")
        found[name], wanted[name] = stale(project), stages
        (project / name).write_text(text, encoding="utf-8")
    text = (project / "params.yaml").read_text(encoding="utf-8")
    for (key, value), stages in PARAMETERS.items():
        project.set({key: value})
        found[key], wanted[key] = stale(project), stages
        (project / "params.yaml").write_text(text, encoding="utf-8")
    assert found == wanted
    assert stale(project) == set()

"""A model for each known group in `dvc repro`: trained, answering, scored and reported."""

from __future__ import annotations

import pytest
from e2e_project import Project

pytestmark = pytest.mark.e2e


def test_a_model_for_each_group_runs_beside_the_others(project: Project):
    methods = ["dpo", "pdpo", "dpo_groups"]
    project.set({"compare.trained": methods, "compare.all": ["base", *methods]})
    result = project.run("dvc", "repro")
    ran = [stage for stage in result.ran if "@" in stage]
    assert ran == ["train@dpo_groups", "generate@dpo_groups", "score@dpo_groups"]
    assert (project / "models/dpo_groups/group_1/adapter_config.json").is_file()
    assert project.json("models/dpo_groups/user_model.json")["user_model"]["groups"] == [
        "longer",
        "shorter",
    ]
    metrics = project.json("reports/metrics.json")["accuracy"]["dpo_groups"]
    # Who is served otherwise than the generic user are those of the smaller group.
    assert metrics["groups"]["longer"] is not None
    assert metrics["macro"] != metrics["generic"]
    assert "a model for each known group of users" in (project / "reports/report.html").read_text()
    curves = (project / "reports/curves/dpo_groups.csv").read_text().splitlines()
    assert curves[0].startswith("step,")


def test_a_reward_model_has_no_groups(project: Project):
    project.set({"reward_models": ["dpo_groups"]})
    result = project.run("prlhf", "params", "check", status=2)
    assert "reward_models" in result.errors[0]
    assert "dpo_groups, whose kind is group" in result.errors[0]

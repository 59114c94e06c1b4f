"""Every method that params.yaml knows in one `dvc repro`: trained, answering, judged, reported."""

from __future__ import annotations

import csv
import math

import pytest
from e2e_project import Project

pytestmark = pytest.mark.e2e

MORE = ["dpo_text", "pdpo_individual", "pdpo_text", "dpo_groups"]
LABELS = {
    "prompted": "the model before any tuning, told what the user says of themselves",
    "dpo_text": "tuned on all choices; told what the user says",
    "pdpo_individual": "each user has an embedding of their own",
    "pdpo_text": "a mixture of a few learned user types; told what the user says, too",
    "dpo_groups": "a model for each known group of users",
}


def test_all_methods_run_beside_each_other(project: Project):
    trained = ["dpo", "pdpo", *MORE]
    project.set(
        {
            "compare.trained": trained,
            "compare.all": ["base", "prompted", *trained],
            # The tiny model's answers are noise; they are not to lose before the judge is asked.
            "judge.degenerate_repetition": 1.0,
            "judge.degenerate_nll": 100.0,
        }
    )
    result = project.run("dvc", "repro")
    ran = {stage for stage in result.ran if "@" in stage}
    assert ran == {
        *(f"train@{name}" for name in MORE),
        *(f"{stage}@{name}" for stage in ("generate", "score") for name in ("prompted", *MORE)),
    }
    metrics = project.json("reports/metrics.json")
    for name in ("prompted", *trained):
        accuracy = metrics["accuracy"][name]
        assert 0.0 <= accuracy["worst_user"] <= accuracy["macro"] <= 1.0
        assert math.isfinite(metrics["fluency"][name]["mean_nll"])
    # Each is a model of its own. Without any training users' words change what is likely.
    assert len({metrics["fluency"][name]["mean_nll"] for name in trained}) == len(trained)
    assert metrics["fluency"]["prompted"]["mean_nll"] != metrics["fluency"]["base"]["mean_nll"]
    own = ["pdpo", *MORE, "prompted"]
    assert set(metrics["win_rate"]) == {
        f"{name}_vs_{other}"
        for place, name in enumerate(own, 1)
        for other in ["base", "dpo", *own[place:]]
    }
    assert set(metrics["accuracy_gain"]) == {
        f"{name}_vs_{other}" for place, name in enumerate(own, 1) for other in ["dpo", *own[place:]]
    }
    with (project / "reports/per_user_wins.csv").open() as file:
        counted = [row for row in csv.DictReader(file) if row["seen"] == "True"]
    seen = [
        (int(row["wins"]) + int(row["ties"]) / 2) / 3  # SMALL has three prompts
        for row in counted
        if (row["method"], row["other"]) == ("pdpo", "prompted")
    ]
    assert len(seen) == 10
    macro = metrics["win_rate"]["pdpo_vs_prompted"]["macro"]
    assert macro == pytest.approx(sum(seen) / len(seen), abs=1e-6)
    report = (project / "reports/report.html").read_text()
    for name, label in LABELS.items():
        assert label in report, name
    assert "P-DPO against Prompted base" in report
    assert "P-DPO against Prompted base" in project.run("prlhf", "summary").out
    _is_a_model_for_each_group(project, metrics["accuracy"]["dpo_groups"])


def _is_a_model_for_each_group(project: Project, accuracy: dict[str, float]) -> None:
    assert (project / "models/dpo_groups/group_1/adapter_config.json").is_file()
    groups = project.json("models/dpo_groups/user_model.json")["user_model"]["groups"]
    assert groups == ["longer", "shorter"]
    # Who is served otherwise than the generic user are those of the smaller group.
    assert accuracy["macro"] != accuracy["generic"]
    curves = (project / "reports/curves/dpo_groups.csv").read_text().splitlines()
    assert curves[0].startswith("step,")


def test_a_reward_model_has_no_groups(project: Project):
    project.set({"reward_models": ["dpo_groups"]})
    result = project.run("prlhf", "params", "check", status=2)
    assert "reward_models" in result.errors[0]
    assert "dpo_groups, whose kind is group" in result.errors[0]

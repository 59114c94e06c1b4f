"""Answers to prompts of one's own, through DVC."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from e2e_project import Project

pytestmark = pytest.mark.e2e


def test_own_prompts_are_answered_and_their_change_is_seen(project: Project):
    train = pd.read_parquet(project / "data/prepared/train.parquet")
    [learned] = json.loads(train["prompt"].iloc[0])
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "why?"}]
    own = [{"prompt": "new?"}, {"prompt": chat}, {"prompt": learned["content"]}]
    (project / "own.json").write_text(json.dumps(own))
    project.set({"generate.prompts_path": "own.json"})
    result = project.run("dvc", "repro")
    answered = ["generate@base", "generate@dpo", "generate@pdpo"]
    assert sorted(name for name in result.ran if name.startswith("generate")) == answered
    assert "generate pdpo: 1 of 3 prompts of own.json are left out" in result.err
    metrics = project.json("reports/metrics.json")
    assert metrics["counts"]["prompts"]["answered"] == 2
    # What is judged by the users' choices does not change.
    assert metrics["counts"]["prompts"]["judged"] > 2
    table = pd.read_parquet(project / "data/generated/pdpo.parquet")
    assert json.dumps(chat, separators=(",", ":")) in set(table["prompt"])
    assert project.run("dvc", "repro").ran == []

    (project / "own.json").write_text(json.dumps(own[:1]))
    assert "generate@pdpo" in project.run("dvc", "repro", "generate@pdpo").ran
    before = project.digests("data/generated")
    (project / "own.json").write_text("[{}]")
    result = project.run("prlhf", "generate", "--method", "base", status=2)
    assert result.errors == ["error: own.json: element 1: has no field prompt"]
    (project / "own.json").unlink()
    result = project.run("prlhf", "generate", "--method", "base", status=2)
    assert result.errors == [
        "error: own.json: no such file (see params.yaml: generate.prompts_path)"
    ]
    assert project.digests("data/generated") == before

"""Real people's choices, where they are at hand: PRLHF_REAL_DATA names the directory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from prlhf.infra.io import read_json
from prlhf.params import load
from prlhf.params.loading import overridden
from prlhf.project import experiments
from prlhf.stages import ingest, validate
from source_tree import ROOT

Ran = tuple[dict[str, Any], dict[str, pd.DataFrame]]


@pytest.fixture
def ran(work: Path) -> Callable[[str], Ran]:
    """The summary and the tables of a data set under its experiment's settings."""

    def run(name: str) -> Ran:
        directory = os.environ.get("PRLHF_REAL_DATA")
        path = ROOT / (directory or "") / name / "pairs.jsonl.gz"
        if directory is None or not path.exists():
            pytest.skip(f"PRLHF_REAL_DATA names no directory with {name}/pairs.jsonl.gz")
        changes = experiments.overrides(f"real-{name}", ROOT / "experiments")
        text = overridden(ROOT / "params.yaml", changes | {"data.path": str(path)})
        (work / "params.yaml").write_text(text, encoding="utf-8")
        params = load(work / "params.yaml")
        ingest.run(seed=params.seed, data=params.data)
        validate.run(
            seed=params.seed,
            label_noise=params.data.label_noise,
            rules=params.validate_,
            split=params.split,
        )
        parts = ("train", "validation", "test", "unseen", "users")
        tables = {part: pd.read_parquet(f"data/prepared/{part}.parquet") for part in parts}
        return read_json("reports/validation.json"), tables

    return run


def by_reason(summary: dict[str, Any]) -> dict[str, int]:
    return {reason: n for reason, n in summary["quarantined"].items() if n}


def test_votes_on_arguments(ran):
    summary, tables = ran("ukpconvarg1")
    assert summary["rows"] == {"ingested": 12966, "usable": 12956, "quarantined": 10}
    assert by_reason(summary) == {"duplicate": 8, "contradiction": 2}
    assert summary["users"] == {"seen": 62, "unseen": 11, "few": 0}
    assert summary["prompts"] == {"train": 21, "validation": 3, "test": 6}
    assert tables["users"]["user_text"].notna().all()


def test_votes_on_statements_are_divided_by_statement(ran):
    summary, tables = ran("polis")
    assert summary["rows"]["ingested"] == 59997
    assert set(by_reason(summary)) == {"spans_sides"}
    assert summary["rows"]["usable"] > 0.78 * 59997
    assert summary["pairs"]["test"] > 8000
    texts = [
        {*table["chosen"], *table["rejected"]}
        for name, table in tables.items()
        if name in ("train", "validation", "test")
    ]
    assert sum(map(len, texts)) == len(set.union(*texts))
    users = tables["users"][tables["users"]["seen"]]
    assert ((users["pairs_train"] > 0) & (users["pairs_test"] > 0)).mean() > 0.7
    assert users["few"].mean() < 0.02


@pytest.mark.parametrize(
    ("name", "rows", "few", "empty"),
    # One of the language models answered with nothing but a zero-width space.
    [("llmfao", 4929, 6, {"empty_chosen": 3, "empty_rejected": 70}), ("crowdrag25", 6760, 3, {})],
)
def test_choices_between_answers_are_divided_by_prompt(ran, name, rows, few, empty):
    summary, tables = ran(name)
    assert summary["rows"]["ingested"] == rows
    found = by_reason(summary)
    assert set(found) == {"duplicate", "contradiction", *empty}
    assert found | empty == found
    assert summary["users"]["few"] == few
    assert not set(tables["train"]["prompt_id"]) & set(tables["test"]["prompt_id"])

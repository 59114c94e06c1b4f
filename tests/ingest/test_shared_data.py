"""Real people's votes, where they are at hand: PRLHF_SHARED_DATA names the directory."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from prlhf.infra.io import read_json
from prlhf.stages import ingest, validate

PAIRS = Path(os.environ.get("PRLHF_SHARED_DATA", "")) / "ukpconvarg1/pairs.jsonl.gz"

pytestmark = pytest.mark.skipif(
    "PRLHF_SHARED_DATA" not in os.environ or not PAIRS.exists(),
    reason="PRLHF_SHARED_DATA names no directory with ukpconvarg1/pairs.jsonl.gz",
)


def test_real_votes_go_through(work, data_params, rules, shares):
    path = PAIRS if PAIRS.is_absolute() else None
    data = data_params(path=str(path or PAIRS.resolve()), columns={"user_text": "user_text"})
    ingest.run(seed=7, data=data)
    validate.run(
        seed=7,
        rules=rules(min_pairs_per_user=4, max_prompt_chars=20000, max_response_chars=8000),
        split=shares(validation=0.1, test=0.2, unseen_users=0.15),
    )
    summary = read_json("reports/validation.json")
    assert summary["rows"] == {"ingested": 12966, "usable": 12956, "quarantined": 10}
    assert {reason: n for reason, n in summary["quarantined"].items() if n} == {
        "duplicate": 8,
        "contradiction": 2,
    }
    assert summary["users"] == {"seen": 62, "unseen": 11}
    users = pd.read_parquet("data/prepared/users.parquet")
    assert users["user_text"].notna().all()
    assert users["user_id"].nunique() == 73

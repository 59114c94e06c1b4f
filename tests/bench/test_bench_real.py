"""The benchmark on real people: figures over people, nobody chosen by chance, work that is kept."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import real_data
from benchmarks.real.figures import Mean, difference, mean, verdict, worst_tenth
from benchmarks.real.reward import KNOWN, measure
from benchmarks.real.sets import RealSet, read_pairs
from prlhf.infra.errors import UserError
from tastes import choices


def counts(shared, personal, pairs: int = 20) -> dict[str, dict[str, list[float]]]:
    """People with these numbers of right predictions in each half."""
    return {
        str(user): {"shared": list(one), "personal": list(other), "pairs": [pairs, pairs]}
        for user, (one, other) in enumerate(zip(shared, personal, strict=True))
    }


def test_a_person_counts_once_whatever_seeds_they_are_in():
    both = counts([(10, 10)], [(12, 12)])
    seeds = [both | {"b": {"shared": [10, 10], "personal": [10, 10], "pairs": [20, 20]}}, both]
    assert difference(seeds, "personal", "shared").value == pytest.approx(0.05)


def test_intervals_are_students():
    found = mean(np.array([0.0, 1.0]))
    assert found.value == 0.5
    assert found.high == pytest.approx(0.5 + 12.706 * 0.5, abs=1e-2)
    assert np.isnan(mean(np.array([1.0])).low)


def test_the_worst_tenth_is_not_found_where_it_is_measured():
    """Equal people and equal models: chance alone puts nobody behind.

    In the same half, the worst tenth would be behind by 0.18.
    """
    rng = np.random.default_rng(0)
    people = counts(rng.binomial(20, 0.7, (2000, 2)), rng.binomial(20, 0.7, (2000, 2)))
    assert abs(worst_tenth([people], "personal", "shared").value) < 0.02


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Mean(0.03, 0.01, 0.05), "gain"),
        (Mean(0.0, -0.01, 0.01), "no harm"),
        (Mean(0.0, -0.05, 0.05), "not shown"),
        (Mean(-0.05, -0.07, -0.03), "harm"),
    ],
)
def test_a_verdict_needs_an_interval_that_carries_it(found, expected):
    assert verdict(found) == expected


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    tastes = np.outer(np.tile([-1, 1], 8), 3 * np.eye(6)[0])
    return measure(RealSet("simulated", tested=1), choices(tastes, 40), 0)


def test_people_are_measured_on_what_is_new(result):
    (known,), (control,), (pairs,) = (result[name] for name in ("users", "shuffled", "pairs"))
    users = known["by_user"]
    assert set(users) == {str(user) for user in range(1, 17)}
    assert sum(sum(found["pairs"]) for found in users.values()) == pairs["test"]
    assert difference([users], "personal", "shared").value > 0.1
    assert known["gain"]["personal"]
    assert not control["gain"]["personal"]


def test_newcomers_are_known_better_with_more_choices(result):
    accuracy = result["newcomers"][0]["accuracy"]
    assert list(accuracy) == [str(known) for known in KNOWN]
    assert accuracy["16"] > accuracy["0"] + 0.1


def test_what_is_measured_is_kept(result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(real_data, "read_examples", lambda *place: asked.append(place) or "pairs")
    monkeypatch.setattr(real_data, "measure", lambda *what: result)
    page = tmp_path / "results.md"
    page.write_text("# Results\n\n<!-- real-data: generated -->\n<!-- real-data: end -->\n")
    options = ["--data", str(tmp_path), "--work", str(tmp_path / "work"), "--out", str(page)]
    options += ["--parts", "reward"]
    options += ["--parts", "reward", "--sets", "polis"]
    for _ in range(2):
        run = CliRunner().invoke(real_data.main, [*options, "--seeds", "2"])
        assert run.exit_code == 0, run.output
    assert len(asked) == 1
    assert "| polis | 16 |" in page.read_text()


def test_pairs_are_read_as_a_prepared_table(tmp_path: Path):
    (tmp_path / "polis").mkdir()
    rows = [
        {"user_id": "b", "prompt": "Which?", "chosen": "x", "rejected": "y", "reason": "leaks"},
        {"user_id": "a", "prompt": "Which?", "chosen": "y", "rejected": "x", "reason": "leaks"},
    ]
    with gzip.open(tmp_path / "polis/pairs.jsonl.gz", "wt") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    table = read_pairs(tmp_path, "polis")
    assert table["user_index"].tolist() == [2, 1]
    assert "reason" not in table
    with pytest.raises(UserError, match="PRLHF_REAL_DATA"):
        read_pairs(tmp_path, "llmfao")

"""Feedback that cannot be used, or not all of it: one line says where, earlier results stay."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from e2e_data import ROOT, feedback, write_feedback
from e2e_project import Project

pytestmark = pytest.mark.e2e


def lines(rows: list[dict[str, str]]) -> list[str]:
    return [json.dumps(row) for row in rows]


def malformed(path: Path) -> None:
    rows = lines(feedback())
    path.write_text("\n".join([*rows[:2], rows[2][:-9], *rows[3:]]), encoding="utf-8")


def without_column(path: Path) -> None:
    path.write_text(
        "\n".join(row.replace("chosen", "choosen") for row in lines(feedback())), encoding="utf-8"
    )


def wrong_type(path: Path) -> None:
    rows = feedback()
    path.write_text(
        "\n".join(lines([rows[0], rows[1] | {"rejected": 5}, *rows[2:]])), encoding="utf-8"
    )


def empty(path: Path) -> None:
    path.write_text("", encoding="utf-8")


def not_utf8(path: Path) -> None:
    path.write_bytes("\n".join(lines(feedback())).encode() + b'\n{"user_id": "caf\xe9"}\n')


def not_gzip(path: Path) -> None:
    packed = gzip.compress("\n".join(lines(feedback())).encode())
    path.with_name("feedback.jsonl.gz").write_bytes(packed[:-20])


def missing(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "name", "line"),
    [
        (malformed, "feedback.jsonl", "feedback.jsonl:3: malformed JSON: "),
        (
            without_column,
            "feedback.jsonl",
            'feedback.jsonl: no column "chosen"; it has user_id, prompt, choosen, rejected '
            '(did you mean "choosen"? set data.columns.chosen)',
        ),
        (
            wrong_type,
            "feedback.jsonl",
            'feedback.jsonl:2: column "rejected": expected text, found the number 5',
        ),
        (empty, "feedback.jsonl", "feedback.jsonl: is empty: no rows in it"),
        (
            not_utf8,
            "feedback.jsonl",
            "feedback.jsonl:31: is not UTF-8: byte 0xE9 at offset",
        ),
        (not_gzip, "feedback.jsonl.gz", "feedback.jsonl.gz: is not a whole gzip file"),
        (
            missing,
            "feedback.jsonl",
            "feedback.jsonl: no such file or directory (set data.path)",
        ),
    ],
    ids=["malformed", "column", "type", "empty", "not utf-8", "not gzip", "missing"],
)
def test_an_unreadable_source_stops_the_ingestion(own_data: Project, damage, name, line):
    earlier = own_data.digests("data")
    damage(own_data / "feedback.jsonl")
    own_data.set({"data.path": name})
    result = own_data.run("prlhf", "ingest", status=2)
    assert len(result.errors) == 1
    assert result.errors[0].startswith(f"error: {line}")
    assert result.err == f"ingest: started\n{result.errors[0]}\n"
    assert result.out == ""
    assert own_data.digests("data") == earlier


def test_faulty_rows_are_set_aside_with_reason_and_line(own_data: Project):
    rows = feedback()
    number = len(rows)
    rows += [
        rows[0] | {"rejected": rows[0]["chosen"]},
        rows[1] | {"chosen": "x" * 100_000},
        rows[2],
        rows[3] | {"chosen": rows[3]["rejected"], "rejected": rows[3]["chosen"]},
    ]
    write_feedback(own_data, rows)
    own_data.set({"validate.max_quarantined": 0.3, "validate.min_pairs_per_user": 3})
    own_data.run("prlhf", "ingest")
    result = own_data.run("prlhf", "validate")
    aside = pd.read_parquet(own_data / "data/prepared/quarantine.parquet")
    reasons = dict(zip(aside["row"], aside["reason"], strict=True))
    assert reasons == {
        4: "contradiction",
        number + 1: "chosen_equals_rejected",
        number + 2: "response_too_long",
        number + 3: "duplicate",
        number + 4: "contradiction",
    }
    assert set(aside["source"]) == {"feedback.jsonl"}
    [told] = [line for line in result.err.splitlines() if "quarantined" in line]
    assert told.endswith("; see data/prepared/quarantine.parquet")
    for reason in reasons.values():
        assert reason in told


def test_too_many_faulty_rows_stop_the_validation(own_data: Project):
    earlier = own_data.digests("data/prepared", "reports")
    write_feedback(own_data, [row | {"rejected": row["chosen"]} for row in feedback()])
    own_data.run("prlhf", "ingest")
    result = own_data.run("prlhf", "validate", status=2)
    [line] = result.errors
    assert result.err == f"validate: started\n{line}\n"
    assert line.startswith("error: feedback.jsonl: 30 of 30 rows are unusable: ")
    assert "chosen_equals_rejected" in line
    assert "validate.max_quarantined allows a share of 0.2" in line
    assert line.endswith("(details: .cache/validation/)")
    assert (own_data / ".cache/validation/quarantine.csv").exists()
    assert own_data.digests("data/prepared", "reports") == earlier


def test_refused_data_leave_the_results_of_earlier_ones_under_dvc(own_data: Project):
    """DVC deletes a stage's outputs before it runs it, but for those that are to stay."""
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, own_data.path)
    shutil.copytree(ROOT / "src", own_data / "src")
    for name in ("data", "reports"):
        shutil.rmtree(own_data / name)
    own_data.run("git", "init", "--quiet")
    own_data.run("dvc", "init", "--quiet")
    assert own_data.run("dvc", "repro", "validate").ran == ["ingest", "validate"]
    earlier = own_data.digests("data/prepared", "reports")
    known = own_data.locked()

    sound = (own_data / "feedback.jsonl").read_bytes()
    write_feedback(own_data, [row | {"rejected": row["chosen"]} for row in feedback()])
    refused = own_data.run("dvc", "repro", "validate", status=255)
    assert refused.ran == ["ingest", "validate"]
    assert len(refused.errors) == 1
    assert own_data.digests("data/prepared", "reports") == earlier
    assert own_data.locked() == known | {"data/ingested": own_data.locked()["data/ingested"]}

    malformed(own_data / "feedback.jsonl")
    own_data.run("dvc", "repro", "validate", status=255)
    assert own_data.digests("data/prepared", "reports") == earlier

    # With the old data again, all is as it was, and with more of them nothing old is left.
    (own_data / "feedback.jsonl").write_bytes(sound)
    assert own_data.run("dvc", "repro", "validate").ran == []
    assert own_data.digests("data/prepared", "reports") == earlier
    extra = {"user_id": "zoe", "prompt": "say ash", "chosen": "no", "rejected": "no"}
    write_feedback(own_data, [*feedback(), extra])
    assert "validate" in own_data.run("dvc", "repro", "validate").ran
    now = own_data.digests("data/prepared", "reports")
    assert now["data/prepared/quarantine.parquet"] != earlier["data/prepared/quarantine.parquet"]
    assert {name for name in now if "data_docs" not in name} == {
        name for name in earlier if "data_docs" not in name
    }
    assert list(own_data.path.rglob(".*.partial*")) == []

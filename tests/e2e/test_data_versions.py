"""Batches of feedback through DVC: a second one, what it changed, another machine."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from e2e_data import feedback
from e2e_project import RESULTS, Project

pytestmark = pytest.mark.e2e


def git(project: Project, *arguments: str) -> str:
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    return project.run("git", *identity, *arguments).out


def keep(project: Project, message: str) -> None:
    """Commit what the project's files are, without the tiny model's and the package's."""
    git(project, "add", "-A")
    git(project, "commit", "--quiet", "-m", message)


def inbox(project: Project, rows: list[dict[str, str]]) -> None:
    (project / "inbox").mkdir(exist_ok=True)
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (project / "inbox/log.jsonl").write_text(text, encoding="utf-8")


def second_batch() -> list[dict[str, str]]:
    """Seven rows: five of a new user, a repetition within the batch, and a faulty one."""
    rows = [
        {"user_id": "zoe", "prompt": f"say {word}", "chosen": word, "rejected": "no"}
        for word in ("ash", "bay", "cob", "dew", "elm")
    ]
    return [*rows, rows[0], rows[0] | {"chosen": "no", "rejected": "no", "prompt": "same"}]


@pytest.fixture
def versions(own_data: Project) -> Project:
    """Two committed versions of a store; the first is tagged v1."""
    shutil.copy(Path(__file__).resolve().parents[2] / "dvc.yaml", own_data.path)
    shutil.copy(Path(__file__).resolve().parents[2] / ".gitignore", own_data.path)
    shutil.copytree(Path(__file__).resolve().parents[2] / "src", own_data / "src")
    for name in ("data", "reports"):
        shutil.rmtree(own_data / name)
    own_data.set({"data.path": "data/feedback", "validate.min_pairs_per_user": 3})
    git(own_data, "init", "--quiet")
    own_data.run("dvc", "init", "--quiet")
    inbox(own_data, feedback())
    added = own_data.run("prlhf", "data", "add", "inbox")
    assert added.out.startswith("data: 30 new rows -> data/feedback/")
    assert own_data.run("dvc", "repro", "validate").ran == ["ingest", "validate"]
    keep(own_data, "First batch")
    git(own_data, "tag", "v1")
    inbox(own_data, [*feedback()[:3], *second_batch()])
    added = own_data.run("prlhf", "data", "add", "inbox")
    assert added.out.startswith("data: 6 new rows (4 known) -> data/feedback/")
    assert own_data.run("dvc", "repro", "validate").ran == ["ingest", "validate"]
    return own_data


def test_a_second_batch_is_picked_up_and_compared(versions: Project):
    stored = sorted((versions / "data/feedback").iterdir())
    assert [len(path.read_text().splitlines()) for path in stored] == [30, 6]
    found = json.loads(versions.run("prlhf", "data", "log", "v1", "--json").out)
    assert (found["added"], found["removed"]) == (6, 0)
    assert (found["new_users"], found["gone_users"]) == (["zoe"], [])
    assert (found["before"]["rows"], found["after"]["rows"]) == (30, 36)
    assert found["before"]["quarantined"] == {}
    assert found["after"]["quarantined"] == {"chosen_equals_rejected": 1}
    assert sum(found["after"]["splits"].values()) == 35
    assert found["stale"] == []

    assert versions.run("prlhf", "data", "add", "inbox").out == "data: nothing new (10 known)\n"
    assert versions.run("dvc", "repro", "validate").ran == []

    table = versions.run("prlhf", "data", "log", "workspace", "v1").out
    assert "gone users: zoe" in table
    [rows] = [line for line in table.splitlines() if line.startswith("| rows")]
    assert [cell.strip() for cell in rows.split("|")[1:5]] == ["rows", "36", "30", "-6"]


def test_the_history_names_versions_the_cache_lacks(versions: Project):
    keep(versions, "Second | batch")
    [second, first] = json.loads(versions.run("prlhf", "data", "log", "--json").out)["entries"]
    assert (first["tag"], first["subject"], first["counts"]["rows"]) == ("v1", "First batch", 30)
    assert (second["counts"]["rows"], second["counts"]["users"]) == (36, 7)
    assert second["changed"] == ["data/feedback", "data/ingested", "data/prepared"]

    # A clone elsewhere has the commits, and no data until they are fetched.
    shutil.rmtree(versions / ".dvc/cache")
    table = versions.run("prlhf", "data", "log").out
    assert table.count("not in the cache |") == 2
    assert "Second \\| batch" in table
    refused = versions.run("prlhf", "data", "log", "v1", status=2)
    assert refused.errors == [
        "error: v1: its data are not in the cache (`dvc fetch --all-commits ingest validate`)"
    ]


def test_what_cannot_be_compared_is_one_line(versions: Project):
    unknown = versions.run("prlhf", "data", "log", "nowhere", status=2)
    assert unknown.err == (
        "error: prlhf data log: unknown revision nowhere (`git fetch` brings those of others)\n"
    )
    git(versions, "checkout", "--quiet", "--orphan", "other")
    git(versions, "commit", "--quiet", "--allow-empty", "-m", "With everything")
    git(versions, "rm", "--quiet", "--cached", "dvc.lock")
    git(versions, "commit", "--quiet", "-m", "Without results")
    none = versions.run("prlhf", "data", "log", "HEAD", status=2)
    assert none.errors == [
        "error: HEAD: has no ingested data (`dvc repro validate`, then commit dvc.lock)"
    ]
    shutil.rmtree(versions / ".git")
    [line] = versions.run("prlhf", "data", "log", status=2).errors
    assert line == "error: prlhf data log: the project is not under Git (run this in a clone)"


def test_a_store_that_lacks_tracked_batches_takes_nothing(versions: Project):
    shutil.rmtree(versions / "data/feedback")
    inbox(versions, [second_batch()[0] | {"chosen": "new"}])
    refused = versions.run("prlhf", "data", "add", "inbox", status=2)
    assert len(refused.errors) == 1
    assert "of the tracked version is not here (`dvc pull data/feedback` brings it" in refused.err
    assert not (versions / "data/feedback").exists()


def test_a_store_in_the_output_of_a_stage_is_refused(versions: Project):
    command = ("prlhf", "data", "add", "inbox", "--store", "data/prepared/feedback")
    [line] = versions.run(*command, status=2).errors
    assert line.startswith("error: data/prepared/feedback: ")


def test_another_machine_pulls_models_and_reports(project: Project, tmp_path: Path):
    remote = tmp_path / "remote"
    project.run("dvc", "remote", "add", "--default", "storage", str(remote))
    keep(project, "Results")
    project.run("dvc", "push", "--quiet")
    other = Project(tmp_path / "other")
    subprocess.run(["git", "clone", "--quiet", project.path, other.path], check=True)
    assert not (other / "models/pdpo").exists()
    other.run("dvc", "pull", "--quiet")
    assert other.run("dvc", "repro").ran == []
    assert other.digests(*RESULTS) == project.digests(*RESULTS)
    assert "P-DPO" in other.run("prlhf", "summary").out

"""The flow on a small project: what runs, what is cached, what fails, and what survives a kill."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from e2e_project import PATIENCE, Project
from flow_project import (
    BAD,
    GOOD,
    SLOW,
    STAGES,
    FlowProject,
    end,
    git,
    gone,
    name_of,
    slow_pid,
    wait_for,
)

pytestmark = pytest.mark.e2e


@pytest.fixture
def project(finished_flow: FlowProject, tmp_path: Path) -> FlowProject:
    copy = FlowProject(finished_flow.copy_to(tmp_path / "project").path, finished_flow.source)
    copy.server = finished_flow.server
    return copy


def states(project: FlowProject, name: str, count: int = len(STAGES)) -> dict[str, str]:
    return {task: run["state_name"] for task, run in project.task_runs(name, count).items()}


def add_stage(project: FlowProject, reads: str) -> None:
    more = f"  more:\n    cmd: cp {reads} more\n    deps: [{reads}]\n    outs: [more]\n"
    project.edit("dvc.yaml", lambda text: text + more)


def test_a_run_without_changes_starts_no_stage_and_says_so(project: FlowProject):
    result = project.flow()
    assert "Running stage" not in result.out + result.err
    assert "skipping" not in result.out + result.err
    assert result.out == "4 stages: 4 unchanged\n"
    runs = project.task_runs(name_of(result))
    assert {name: run["state_name"] for name, run in runs.items()} == dict.fromkeys(
        STAGES, "Cached"
    )
    assert {name: run["tags"] for name, run in runs.items() if run["tags"]} == {
        "side@a": ["gpu"],
        "side@b": ["gpu"],
    }
    assert project.ask("/concurrency_limits/tag/gpu")["concurrency_limit"] == 1
    # The graph that Prefect shows is DVC's.
    inputs = runs["last"]["task_inputs"]["wait_for"]
    assert {one["id"] for one in inputs} == {runs["side@a"]["id"], runs["side@b"]["id"]}


def test_a_change_runs_what_it_affects_and_going_back_restores_it(project: FlowProject):
    project.set({"train.alpha": 0.125})
    changed = project.flow("--parallel", "2")
    assert changed.out == "4 stages: 4 ran\n"
    project.set({"train.alpha": 0.5})
    back = project.flow()
    found = states(project, name_of(back))
    assert [found[name] for name in STAGES[:3]] == ["Restored"] * 3
    assert "Running stage 'first'" not in back.out + back.err


def test_a_stage_without_a_changed_result_stops_the_chain(project: FlowProject):
    project.edit("dvc.yaml", lambda text: text.replace("cmd: grep", "cmd: true; grep"))
    assert project.flow().out == "4 stages: 1 ran, 3 unchanged\n"


def test_a_new_stage_needs_no_change_of_the_flow(project: FlowProject):
    add_stage(project, "side-a.txt")
    result = project.flow("more")
    assert states(project, name_of(result), 3) == {
        "first": "Cached",
        "side@a": "Cached",
        "more": "Completed",
    }
    assert (project / "more").exists()


def test_an_unknown_stage_is_an_error(project: FlowProject):
    result = project.flow("sied", status=1)
    assert result.errors == ["error: sied: no such stage (did you mean side?)"]
    assert states(project, name_of(result), 0) == {}


def test_a_failure_is_the_stages_own_line_and_the_next_run_goes_on(project: FlowProject):
    project.script(BAD)
    add_stage(project, "reports/m.json")
    result = project.flow(status=1)
    message = "error: feedback.jsonl:3: is not JSON (mend it)"
    assert result.errors == [f"{message} [last]"]
    assert "NoneType" not in result.out + result.err
    run = project.flow_run(name_of(result))
    assert (run["state_type"], run["state"]["message"]) == ("FAILED", f"{message} [last]")
    tasks = project.task_runs(name_of(result), 5)
    assert tasks["last"]["state"]["message"] == message
    assert tasks["last"]["run_count"] == 1
    assert tasks["more"]["state_name"] == "NotReady"
    project.script(GOOD)
    assert project.flow().out.startswith("5 stages: ")


def test_only_stages_that_ask_for_it_are_retried_and_time_out(project: FlowProject):
    retried = "cmd: sh last.sh\n    meta: {retries: 1, retry_delay: 0}"
    project.edit("dvc.yaml", lambda text: text.replace("cmd: sh last.sh", retried))
    project.script(BAD)
    result = project.flow(status=1)
    assert (result.out + result.err).count("Task run 'last' - error: feedback.jsonl:3:") == 2
    project.edit("dvc.yaml", lambda text: text.replace("retries: 1", "timeout: 2"))
    project.script(SLOW)
    result = project.flow(status=1)
    assert result.errors == ["error: last: timed out after 2 s"]
    assert gone(slow_pid(project))
    assert states(project, name_of(result))["last"] == "TimedOut"


def test_a_run_with_overrides_becomes_an_experiment_and_changes_nothing(project: FlowProject):
    before = project.digests("params.yaml", "dvc.lock", "first.txt", "side-a.txt", "reports")
    result = project.flow("--set", "train.alpha=0.125")
    [name] = re.findall(r"kept as experiment ([\w-]+) \(", result.out)
    assert project.digests(*before) == before
    assert git(project, "status", "--porcelain") == ""
    assert name in project.run("dvc", "exp", "list", "--name-only").out.split()
    # The report that the run shows is its own.
    kept = project / f".dvc/tmp/flows/reports/{name}.html"
    assert "alpha: 0.125 " in kept.read_text()
    shown = {one["key"]: one["data"] for one in project.artifacts(name_of(result))}
    assert kept.as_uri() in shown["report"]
    assert shown["metrics"].startswith("0 of 1 metrics changed")
    project.run("dvc", "exp", "apply", name)
    assert "alpha: 0.125 " in (project / "first.txt").read_text()
    assert project.flow().out == "4 stages: 4 unchanged\n"


def test_a_part_with_overrides_runs_in_a_new_clone(finished_flow: FlowProject, tmp_path: Path):
    clone = FlowProject(tmp_path / "project", finished_flow.source)
    clone.server = finished_flow.server
    git(finished_flow, "clone", "--quiet", str(finished_flow.path), str(clone.path))
    result = clone.flow("side@a", "--set", "train.alpha=0.125")
    [name] = re.findall(r"kept as experiment ([\w-]+) \(", result.out)
    assert git(clone, "status", "--porcelain") == ""
    assert "complains of other stages' results, which are not here" in result.out
    clone.run("dvc", "exp", "apply", name, status=255)
    assert "alpha: 0.125 " in (clone / "side-a.txt").read_text()
    # What did not run is recorded as it was, not as if it had run with other parameters.
    assert git(clone, "diff", "--stat", "--", "dvc.lock")
    assert clone.flow("side@a").out == "2 stages: 2 unchanged\n"
    assert clone.flow().out == "4 stages: 2 ran, 2 unchanged\n"


def test_a_link_out_of_the_project_is_told_before_anything_runs(project: FlowProject):
    (project / "reports").rename(project.path.with_name("elsewhere"))
    (project / "reports").symlink_to(project.path.with_name("elsewhere"))
    project.script(GOOD + "echo again\n")
    result = project.flow(status=1)
    [line] = result.errors
    assert line.startswith("error: reports: leads to ")
    assert "Running stage" not in result.out + result.err


def test_wrong_overrides_are_told_before_anything_runs(project: FlowProject):
    result = project.flow("--set", "train.alhpa=1", status=1)
    assert result.errors == ["error: train.alhpa: unknown key (did you mean train.alpha?)"]


@pytest.mark.parametrize(
    ("number", "overrides"),
    [
        (signal.SIGINT, ()),
        (signal.SIGTERM, ()),
        (signal.SIGKILL, ()),
        (signal.SIGKILL, ("--set", "train.alpha=0.125")),
    ],
)
def test_a_killed_run_leaves_no_process_and_the_next_goes_on(
    project: FlowProject, number: int, overrides: tuple[str, ...]
):
    project.script(SLOW)
    params = project.digests("params.yaml")
    process = project.start("python", "-m", "flows", "run", *overrides)
    place = project
    if overrides:
        root = wait_for(lambda: next((project / ".dvc/tmp/flows").glob("*/slow.pid"), None))
        place = Project(root.parent)
    try:
        pid = slow_pid(place, process)
        os.kill(process.pid, number)
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        end(process)
    wait_for(lambda: gone(pid))
    status, word = {
        signal.SIGINT: (130, "interrupted"),
        signal.SIGTERM: (143, "terminated"),
        signal.SIGKILL: (-signal.SIGKILL, ""),
    }[number]
    assert process.returncode == status
    if word:
        assert err.splitlines()[-1].startswith(f"error: {word}: every process of the run has ended")
    assert "Traceback" not in err
    assert project.digests("params.yaml") == params
    project.script(GOOD + "echo again\n")
    assert "4 stages: " in project.flow(*overrides).out


def test_it_works_without_a_server_and_behind_a_proxy(
    project: FlowProject, monkeypatch: pytest.MonkeyPatch
):
    project.server = None
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    project.script(GOOD + "echo again\n")
    result = project.flow()
    assert result.out == "4 stages: 1 ran, 3 unchanged\n"
    assert "again\n" in result.err + result.out


def test_a_server_that_cannot_start_ends_the_run_with_its_reason(
    project: FlowProject, tmp_path: Path
):
    project.server = None
    home = tmp_path / "state" / "prefect"
    home.mkdir(parents=True)
    (home / "prefect.db").write_text("no database, but long enough to be looked at" * 99)
    result = project.flow(status=2)
    [line] = result.errors
    assert line.startswith("error: Prefect's server exited with 3: ")
    assert "file is not a database" in line
    assert "Traceback" not in result.err

"""The deployments of prefect.yaml, run by a worker on a Prefect server."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from flow_project import (
    BAD,
    GOOD,
    SLOW,
    FlowProject,
    background,
    commit,
    gone,
    make,
    slow_pid,
    wait_for,
)

pytestmark = pytest.mark.e2e
WORKER = ("prefect", "worker", "start", "--pool", "prlhf", "--type", "process")
INBOX = """
  more:
    cmd: cp -r data/feedback more
    deps: [data/feedback]
    outs: [more]
"""


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory, server: str) -> FlowProject:
    """A small project that the flow has run in, deployed as documented, without its schedules."""
    project = make(tmp_path_factory.mktemp("deployed") / "project", server)
    project.flow()
    commit(project)
    # The worker makes the pool. `prefect work-pool create` would have the server look for kinds of
    # workers on the network.
    with background(project, *WORKER):
        wait_for(
            lambda: "prlhf" in [pool["name"] for pool in project.ask("/work_pools/filter", {})]
        )
        project.run("prefect", "--no-prompt", "deploy", "--all")
        project.run("prefect", "deployment", "schedule", "pause", "--all")
    return project


@pytest.fixture
def project(deployed: FlowProject) -> Iterator[FlowProject]:
    """That project, with a worker at work."""
    deployed.script(GOOD)
    with background(deployed, *WORKER):
        yield deployed


def deployment_run(project: FlowProject, name: str, *arguments: str, status: int = 0) -> Any:
    """Run a deployment to its end; the flow run."""
    command = ("prefect", "deployment", "run", name, "--watch", *arguments)
    result = project.run(*command, status=status)
    [found] = re.findall(r"UUID: ([0-9a-f-]{36})", result.out)
    return project.ask(f"/flow_runs/{found}")


def test_deployments_run_also_with_other_parameters_and_a_failure_shows(project: FlowProject):
    deployments = project.ask("/deployments/filter", {})
    schedules = {one["name"]: [s["schedule"] for s in one["schedules"]] for one in deployments}
    assert schedules["local"] == []
    assert [one["cron"] for one in schedules["nightly"]] == ["0 2 * * *"]
    assert [one["interval"] for one in schedules["new-feedback"]] == [600]

    before = project.digests("params.yaml", "dvc.lock", "first.txt", "reports")
    overrides = json.dumps({"train.alpha": 0.125})
    run = deployment_run(project, "prlhf/local", "--param", f"overrides={overrides}")
    assert run["state_type"] == "COMPLETED"
    [name] = re.findall(r"kept as experiment ([\w-]+) \(", run["state"]["message"])
    assert project.digests(*before) == before
    assert "alpha: 0.125 " in (project / f".dvc/tmp/flows/reports/{name}.html").read_text()

    project.script(BAD)
    run = deployment_run(project, "prlhf/local", status=1)
    assert run["state_type"] == "FAILED"
    assert run["state"]["message"] == "error: feedback.jsonl:3: is not JSON (mend it) [last]"


def test_new_feedback_is_taken_in_once_and_starts_the_pipeline(project: FlowProject):
    project.edit("dvc.yaml", lambda text: text.rstrip("\n") + INBOX)
    (project / "data/inbox").mkdir(parents=True)
    row = {"user_id": "u", "prompt": "p", "chosen": "c", "rejected": "r"}
    (project / "data/inbox/one.jsonl").write_text(f"{json.dumps(row)}\n")
    try:
        run = deployment_run(project, "prlhf-new-feedback/new-feedback")
        assert run["state"]["message"].startswith("1 new rows; ")
        [batch] = (project / "data/feedback").glob("*.jsonl")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d\.jsonl", batch.name)
        assert json.loads(batch.read_text()) == row
        assert (project / "data/feedback.dvc").exists()
        assert (project / "more" / batch.name).read_text() == batch.read_text()
        again = deployment_run(project, "prlhf-new-feedback/new-feedback")
        assert again["state"]["message"] == "nothing new (1 rows are known)"
        body = {"flow_runs": {"name": {"any_": [again["name"]]}}}
        assert project.ask("/task_runs/filter", body) == []
    finally:
        project.edit("dvc.yaml", lambda text: text.replace(INBOX, "\n"))


@pytest.mark.parametrize("how", ["cancel", signal.SIGTERM, signal.SIGKILL])
def test_a_stage_ends_with_its_run_or_its_worker_and_the_next_run_goes_on(
    deployed: FlowProject, how: str | int
):
    deployed.script(SLOW)
    (deployed / "slow.pid").unlink(missing_ok=True)
    with background(deployed, *WORKER) as worker:
        result = deployed.run("prefect", "deployment", "run", "prlhf/local")
        [run] = re.findall(r"UUID: ([0-9a-f-]{36})", result.out)
        pid = slow_pid(deployed)
        if how == "cancel":
            deployed.run("prefect", "flow-run", "cancel", run)
        else:
            os.kill(worker.pid, int(how))
        wait_for(lambda: gone(pid))
        if how == "cancel":
            path = f"/flow_runs/{run}"
            wait_for(lambda: deployed.ask(path)["state_type"] == "CANCELLED")
    deployed.script(GOOD + f"echo {how}\n")
    # The store of feedback is one of DVC's stages, too, once there is one.
    assert re.match(r"\d stages: 1 ran, \d unchanged$", deployed.flow().out)

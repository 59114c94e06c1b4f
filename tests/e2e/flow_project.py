"""A small DVC project for tests of the flows: stages of a shell command each, no models."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from e2e_data import ROOT
from e2e_project import PATIENCE, Project, Result

STAGES = ["first", "side@a", "side@b", "last"]
GOOD = """mkdir -p reports
echo '{"score": {"mean": 0.5}}' > reports/m.json
cat side-a.txt > reports/report.html
"""
BAD = """echo "error: feedback.jsonl:3: is not JSON (mend it)" >&2
exit 2
"""
SLOW = """sleep 600 &
echo $! > slow.pid
echo asleep
wait
"""
DVC_YAML = """
stages:
  first:
    cmd: grep -A 1 '^train:' params.yaml > first.txt
    params: [train.alpha]
    outs: [first.txt]
  side:
    matrix:
      name: [a, b]
    cmd: cat first.txt > side-${item.name}.txt
    deps: [first.txt]
    outs: ["side-${item.name}.txt"]
    meta:
      gpu: true
  last:
    cmd: sh last.sh
    deps: [side-a.txt, side-b.txt, last.sh]
    outs:
      - reports/report.html:
          cache: false
    metrics:
      - reports/m.json:
          cache: false
"""


class FlowProject(Project):
    """Commands in it reach a Prefect server, if there is one."""

    server: str | None = None

    def environment(self) -> dict[str, str]:
        found = super().environment()
        Path(found["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
        return found | ({"PREFECT_API_URL": self.server} if self.server else {})

    def script(self, text: str) -> None:
        """What the last stage does."""
        (self / "last.sh").write_text(text, encoding="utf-8")

    def flow(self, *arguments: str, status: int = 0) -> Result:
        return self.run("python", "-m", "flows", "run", *arguments, status=status)

    def ask(self, path: str, body: Any = None) -> Any:
        """What the server's API answers."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.server}{path}", data=data, headers=headers)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def flow_run(self, name: str) -> Any:
        [found] = self.ask("/flow_runs/filter", {"flow_runs": {"name": {"any_": [name]}}})
        return found

    def artifacts(self, name: str) -> Any:
        """What a flow run shows of its results."""
        body = {"artifacts": {"flow_run_id": {"any_": [self.flow_run(name)["id"]]}}}
        return self.ask("/artifacts/filter", body)

    def task_runs(self, name: str, count: int = len(STAGES)) -> dict[str, Any]:
        """The task runs of a flow run, by name, once the server has taken in all of them."""

        def settled() -> Any:
            body = {"flow_runs": {"name": {"any_": [name]}}}
            found = {run["name"]: run for run in self.ask("/task_runs/filter", body)}
            # NotReady is a pending state, too, but a last one.
            unsettled = {"Pending", "Running", "Scheduled", "AwaitingRetry", "Retrying"}
            over = not any(run["state_name"] in unsettled for run in found.values())
            return (found,) if over and len(found) == count else None

        return wait_for(settled)[0]


def make(path: Path, server: str | None) -> FlowProject:
    """A project with a first commit, in which nothing has run."""
    project = FlowProject(path, ROOT / "src")
    project.server = server
    path.mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "flows", path / "flows", ignore=ignored)
    for name in ("params.yaml", "prefect.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, path / name)
    (path / "dvc.yaml").write_text(DVC_YAML, encoding="utf-8")
    project.script(GOOD)
    git(project, "init", "--quiet")
    project.run("dvc", "init", "--quiet")
    shutil.copy(ROOT / ".dvc/config", path / ".dvc/config")
    commit(project)
    return project


def commit(project: Project) -> None:
    git(project, "add", "--all")
    git(project, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "-m", "run")


def git(project: Project, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments],
        cwd=project.path,
        env=project.environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def name_of(result: Result) -> str:
    """The name of the flow run that a command went through."""
    return re.findall(r"Beginning flow run '(.+?)'", result.out + result.err)[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition: Callable[[], Any]) -> Any:
    """The first value of a condition that is not false."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(urllib.error.URLError, FileNotFoundError, ValueError):
            if found := condition():
                return found
        assert time.monotonic() < deadline
        time.sleep(0.1)


def slow_pid(project: Project, process: subprocess.Popen[str] | None = None) -> int:
    """The process that `SLOW` waits for; `process` is to start it, and must not end before."""

    def found() -> int:
        assert process is None or process.poll() is None, process.communicate()
        return int((project / "slow.pid").read_text())

    return wait_for(found)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextlib.contextmanager
def background(project: FlowProject, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A server or worker, with what it prints in the file `log` beside the project."""
    quiet = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    with project.path.with_name("log").open("a") as log:
        process = subprocess.Popen(
            command,
            cwd=project.path,
            env=project.environment() | quiet | {"PREFECT_WORKER_QUERY_SECONDS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[str]) -> None:
    """End a server or worker with all that it started."""
    if process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()

"""Projects that several tests look at, or copy and change. They are made once for all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_data import OTHER_ALPHA, ROOT, SMALL, clone, feedback, write_feedback
from e2e_project import Project, Result, once
from flow_project import FlowProject, background, commit, free_port, make, wait_for


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The whole pipeline after `dvc repro` in a clone; read only. Its output is in repro.json."""
    with once(tmp_path_factory, "finished") as (directory, missing):
        path = directory / "project"
        if missing:
            project = clone(path)
            save(directory / "repro.json", project.run("dvc", "repro"))
    return Project(path)


@pytest.fixture(scope="session")
def first_run(finished: Project) -> Result:
    """What the first `dvc repro` printed."""
    return load(finished.path.parent / "repro.json")


@pytest.fixture(scope="session")
def changed(tmp_path_factory: pytest.TempPathFactory, finished: Project) -> Project:
    """`finished`, after `dvc repro` with another `train.alpha`; read only."""
    with once(tmp_path_factory, "changed") as (directory, missing):
        path = directory / "project"
        if missing:
            project = finished.copy_to(path)
            project.set({"train.alpha": OTHER_ALPHA})
            save(directory / "repro.json", project.run("dvc", "repro"))
    return Project(path)


@pytest.fixture(scope="session")
def second_run(changed: Project) -> Result:
    """What the `dvc repro` after the change printed."""
    return load(changed.path.parent / "repro.json")


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of `finished` to change."""
    return finished.copy_to(tmp_path / "project")


@pytest.fixture(scope="session")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Feedback of one's own, ingested and validated, without DVC; read only."""
    with once(tmp_path_factory, "validated") as (directory, missing):
        project = Project(directory / "project", ROOT / "src")
        if missing:
            project.path.mkdir(parents=True)
            text = (ROOT / "params.yaml").read_text(encoding="utf-8")
            (project / "params.yaml").write_text(text, encoding="utf-8")
            own = {"data.source": "local", "data.path": "feedback.jsonl"}
            project.set(SMALL | own)
            write_feedback(project, feedback())
            project.run("prlhf", "ingest")
            project.run("prlhf", "validate")
    return project


@pytest.fixture
def own_data(validated: Project, tmp_path: Path) -> Project:
    """A copy of `validated` to change."""
    return validated.copy_to(tmp_path / "project")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prefect server."""
    host = FlowProject(tmp_path_factory.mktemp("server") / "project", ROOT / "src")
    host.path.mkdir()
    port = str(free_port())
    command = ("prefect", "server", "start", "--host", "127.0.0.1", "--port", port)
    with background(host, *command) as process:
        host.server = f"http://127.0.0.1:{port}/api"
        wait_for(lambda: process.poll() is not None or host.ask("/health"))
        assert process.poll() is None, host.path.with_name("log").read_text()
        yield host.server
    assert not host.network_log.exists(), host.network_log.read_text()


@pytest.fixture(scope="session")
def finished_flow(tmp_path_factory: pytest.TempPathFactory, server: str) -> FlowProject:
    """A small project that the flow has run in; read only."""
    project = make(tmp_path_factory.mktemp("flow") / "project", server)
    project.flow()
    commit(project)
    return project


def save(path: Path, result: Result) -> None:
    path.write_text(json.dumps(vars(result)), encoding="utf-8")


def load(path: Path) -> Result:
    return Result(**json.loads(path.read_text(encoding="utf-8")))

"""Stages in several processes: what one process gives, and a clear end when one of them dies."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from e2e_project import PATIENCE, Project, Result, stop
from flow_project import FlowProject, free_port, name_of
from safetensors.torch import load_file

from prlhf.models.user_model import load_user_model

pytestmark = pytest.mark.e2e

TRAIN = ("dvc", "repro", "train@pdpo")
MADE = ("models/pdpo", "reports/curves/pdpo.csv", "reports/curves/pdpo.json")


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Commands that end with the test."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        stop(process)


def assert_same_model(
    found: Project, wanted: Project, model: str = "pdpo", curves: str = "curves/pdpo"
) -> None:
    """Equal up to float32 rounding: relative 1e-5 where nothing amplifies it.

    Adam does: in its first step a gradient near its epsilon becomes a whole learning rate. It is
    the difference between users' embeddings that counts for the model, not that of their weights.
    """
    places = [p / f"models/{model}" for p in (found, wanted)]
    assert_same_weights(*places, "**/adapter_model.safetensors")
    users = [load_user_model(place) for place in places]
    assert users[0].users == users[1].users
    everyone = torch.arange(len(users[0].users) + 1)
    assert [users[0].adapter(i) for i in everyone] == [users[1].adapter(i) for i in everyone]
    with torch.no_grad():
        embeddings = [model(everyone) for model in users]
    torch.testing.assert_close(*embeddings, rtol=1e-3, atol=1e-3)
    tables = [pd.read_csv(p / f"reports/{curves}.csv") for p in (found, wanted)]
    # With the norm of all gradients, those of the users' tables among them, at every step logged.
    assert tables[0]["grad_norm"].notna().sum() > 1
    # An epoch that is filled up is longer, and its fractions are others.
    pd.testing.assert_frame_equal(
        *(table.drop(columns=["loss", "epoch"]) for table in tables), rtol=1e-4, atol=1e-4
    )
    pd.testing.assert_series_equal(*(table["loss"] for table in tables), rtol=1e-3)


def assert_same_weights(found: Path, wanted: Path, pattern: str) -> None:
    files = sorted(path.relative_to(wanted) for path in wanted.glob(pattern))
    assert files
    for file in files:
        weights = [load_file(str(place / file)) for place in (found, wanted)]
        assert weights[0].keys() == weights[1].keys()
        for key, weight in weights[0].items():
            torch.testing.assert_close(weight, weights[1][key], rtol=1e-5, atol=1e-5, msg=key)


def complete(project: Project) -> set[Path]:
    return set((project / ".cache/checkpoints").glob("*/checkpoint-*/complete"))


def workers(launcher: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """The processes of a stage, by their rank."""
    found = {}
    for process in psutil.Process(launcher.pid).children(recursive=True):
        try:
            rank = process.environ().get("RANK")
        except psutil.Error:
            continue
        if rank is not None:
            found[int(rank)] = process
    return found


def wait_for(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def finish(process: subprocess.Popen[str]) -> Result:
    out, err = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in out + err, err
    return Result(process.returncode, out, err)


def kill(rank: int, process: subprocess.Popen[str], project: Project) -> Result:
    """End one of the two processes of a training that has a checkpoint; what came of it."""
    wait_for(lambda: complete(project), process)
    those = workers(process)
    assert sorted(those) == [0, 1]
    those[rank].send_signal(signal.SIGKILL)
    result = finish(process)
    [error] = result.errors
    assert error.startswith(f"error: train@pdpo: process {rank} of 2 was ended by SIGKILL (")
    assert not any(worker.is_running() for worker in those.values())
    return result


def test_a_killed_process_ends_the_run_and_the_next_goes_on(
    finished: Project, project: Project, started: list[subprocess.Popen[str]]
):
    project.set({"launch.processes": 2})
    # How the work is shared out makes no result old.
    assert project.run(*TRAIN).ran == []

    project.forget("train@pdpo", *MADE)
    process = project.start(*TRAIN)
    started.append(process)
    result = kill(1, process, project)
    assert result.status not in (0, -signal.SIGKILL)
    assert not (project / "models/pdpo").exists()
    step = max(int(path.parent.name.rpartition("-")[2]) for path in complete(project))

    result = project.run(*TRAIN)
    resumed = re.findall(r"^train pdpo: resuming from step (\d+)$", result.err, re.MULTILINE)
    assert resumed == [str(step)]
    assert_same_model(project, finished)
    assert list((project / ".cache/checkpoints").iterdir()) == []


def test_a_model_spread_over_two_processes_gives_the_results_of_one(
    finished: Project, project: Project
):
    project.set({"launch.processes": 2, "launch.strategy": "fsdp"})
    shutil.rmtree(project / ".cache/reference")
    made = ("data/reference", "models/prompted", "data/generated/pdpo.parquet", "data/scores/pdpo")
    for command in (["reference"], ["generate", "--method", "pdpo"], ["score", "--method", "pdpo"]):
        project.run("prlhf", *command)
    # Batches are dealt out whole, each computed as one process would.
    assert project.digests(*made) == finished.digests(*made)

    project.run("prlhf", "train", "--method", "pdpo")
    assert_same_model(project, finished)


@pytest.mark.parametrize(
    ("method", "strategies", "changes"),
    [
        # An adapter of its own for each group, put into the same base model one after the other.
        ("dpo_groups", ("ddp", "fsdp"), {}),
        # Which term is drawn for a pair, and in whose company it is, must not depend on who
        # computes it; the users' table is sparse and of as many columns as an embedding.
        (
            "pdpo_individual",
            ("ddp",),
            {
                "methods.pdpo_individual.text": True,
                "user_model.offset_spread": 0.5,
                "optimizer.term_sampling": True,
                "optimizer.length_bucketing": True,
            },
        ),
    ],
)
def test_every_way_of_training_gives_the_results_of_one_process(
    project: Project, tmp_path: Path, method: str, strategies: tuple[str, ...], changes: dict
):
    project.set({"optimizer.max_steps": 12} | changes)
    shared = {name: project.copy_to(tmp_path / name) for name in strategies}
    project.run("prlhf", "train", "--method", method)
    for strategy, copy in shared.items():
        copy.set({"launch.processes": 2, "launch.strategy": strategy})
        copy.run("prlhf", "train", "--method", method)
        assert_same_model(copy, project, method, f"curves/{method}")


def test_a_reward_model_of_two_processes_is_that_of_one(project: Project, tmp_path: Path):
    section = {"max_steps": 12, "batch_size": 8, "micro_batch_size": 2, "eval_every": 0.5}
    section |= {"term_sampling": True, "length_bucketing": True}
    project.set({"reward_models": ["pdpo"]})
    project.set({f"optimizer.{key}": value for key, value in section.items()})
    shared = {name: project.copy_to(tmp_path / name) for name in ("ddp", "fsdp")}
    project.run("prlhf", "train-reward-model", "--method", "pdpo")
    project.run("prlhf", "score-rewards", "--method", "pdpo")
    scores = "data/scores/reward_pdpo/pairs.parquet"
    for strategy, copy in shared.items():
        copy.set({"launch.processes": 2, "launch.strategy": strategy})
        copy.run("prlhf", "train-reward-model", "--method", "pdpo")
        copy.run("prlhf", "score-rewards", "--method", "pdpo")
        assert_same_model(copy, project, "reward_pdpo", "reward_models/pdpo")
        places = [p / "models/reward_pdpo" for p in (copy, project)]
        assert_same_weights(*places, "reward_head.safetensors")
        tables = [pd.read_parquet(p / scores) for p in (copy, project)]
        assert tables[1]["margin"].abs().max() > 1e-3
        pd.testing.assert_frame_equal(*tables, rtol=1e-4, atol=1e-5)

    folder = "data/scores/reward_pdpo"
    wanted = project.digests(folder)
    assert len(wanted) == 3
    shutil.rmtree(project / folder)
    project.set({"launch.processes": 2, "launch.strategy": "fsdp"})
    project.run("prlhf", "score-rewards", "--method", "pdpo")
    assert project.digests(folder) == wanted


def test_a_flow_shares_a_stage_and_tells_of_a_killed_process(
    finished: Project, project: Project, server: str, started: list[subprocess.Popen[str]]
):
    flow = FlowProject(project.path, project.source)
    flow.server = server
    flow.set({"launch.processes": 2})
    flow.forget("train@pdpo", *MADE)
    process = flow.start("python", "-m", "flows", "run", "train@pdpo")
    started.append(process)
    result = kill(0, process, flow)
    assert result.status == 1
    [error] = result.errors
    tasks = flow.task_runs(name_of(result), 6)
    assert tasks["train@pdpo"]["state_type"] == "FAILED"
    assert tasks["train@pdpo"]["state"]["message"] == error
    assert {run["state_name"] for name, run in tasks.items() if name != "train@pdpo"} == {"Cached"}

    result = flow.flow("train@pdpo")
    assert result.out == "6 stages: 1 ran, 5 unchanged\n"
    assert "train pdpo: resuming from step " in result.err
    assert_same_model(flow, finished)


def test_two_machines_share_a_stage(
    finished: Project, project: Project, started: list[subprocess.Popen[str]], monkeypatch
):
    project.set({"launch.machines": 2})
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setenv("NODE_RANK", "1")
    other = project.start("prlhf", "join", "--patience", "60")
    started.append(other)
    monkeypatch.setenv("NODE_RANK", "0")
    result = project.run("prlhf", "train", "--method", "pdpo")
    assert "train@pdpo: waiting for 1 more machine at 127.0.0.1:" in result.err
    assert_same_model(project, finished)
    other.send_signal(signal.SIGTERM)
    told = finish(other)
    assert "join: train@pdpo: started\njoin: train@pdpo: done\n" in told.err
    assert told.errors == ["error: terminated"]


def test_mistakes_are_said_once_and_signals_end_all(
    project: Project, started: list[subprocess.Popen[str]]
):
    project.set({"launch.processes": 2})
    process = project.start("prlhf", "train", "--method", "pdpo")
    started.append(process)
    wait_for(lambda: complete(project), process)
    those = workers(process)
    process.send_signal(signal.SIGTERM)
    result = finish(process)
    assert (result.status, result.errors) == (143, ["error: terminated"])
    assert not any(worker.is_running() for worker in those.values())

    (project / "data/prepared/users.parquet").write_bytes(b"no table")
    result = project.run("prlhf", "generate", "--method", "base", status=2)
    assert result.errors == [
        "error: data/prepared/users.parquet: is not a readable Parquet file "
        "(`dvc repro` makes it anew)"
    ]

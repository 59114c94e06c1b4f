"""The benchmarks on a tiny random model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import torch

from benchmarks.command import run
from benchmarks.models import load
from prlhf.models.base import BaseModel

torch.set_num_threads(1)  # more only cost time at this size


@pytest.fixture(scope="session")
def tiny_random() -> Iterator[BaseModel]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRLHF_DEVICE", "cpu")
        yield load("random:tiny", dtype="float32")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.getaddrinfo", refuse)


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run a benchmark's command line in an empty directory: exit status, and what it says."""
    monkeypatch.chdir(tmp_path)
    for name in ("PRLHF_DEVICE", "KINETO_LOG_LEVEL", "TQDM_DISABLE"):
        monkeypatch.setenv(name, "")  # so that what the command sets is undone

    def execute(main: click.Command, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
        try:
            run(main)
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        return status, capsys.readouterr().err

    return execute

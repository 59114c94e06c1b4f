"""A DVC project of its own for a test: real commands in it, and what they left behind."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

GUARD = Path(__file__).resolve().parent / "guard"
PATIENCE = 1800
"""Seconds that one command may take: only a hanging one is stopped, however busy the machine."""

STAGES = [
    "base_model",
    "ingest",
    "validate",
    "reference",
    "pretrain_user_model",
    "train@dpo",
    "train@pdpo",
    "generate@base",
    "generate@dpo",
    "generate@pdpo",
    "score@base",
    "score@dpo",
    "score@pdpo",
    "judge",
    "evaluate",
    "report",
]


@dataclass(frozen=True)
class Result:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def ran(self) -> list[str]:
        """The stages that `dvc repro` ran, not counting those restored from its cache."""
        return re.findall(r"^Running stage '(.+)':$", self.out, re.MULTILINE)

    @property
    def errors(self) -> list[str]:
        """The lines by which `prlhf` says what is wrong."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


class Project:
    """A directory with params.yaml, and the code that commands in it run.

    Args:
        path: The directory.
        source: Where the package is imported from; by default the project has a copy of its own.
    """

    def __init__(self, path: Path, source: Path | None = None) -> None:
        self.path = path
        self.source = source
        self.network_log = path.with_name(f"{path.name}.network")

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def copy_to(self, path: Path) -> Project:
        shutil.copytree(self.path, path, symlinks=True)
        return Project(path, self.source)

    # -- commands --------------------------------------------------------------------------------

    def run(self, *command: str, status: int = 0, offline: bool = True) -> Result:
        """Run a command to its end.

        Args:
            command: The command line.
            status: The exit status that it must have.
            offline: It must not even try to reach another machine. None gets through either way.
        """
        process = self.start(*command)
        try:
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            stop(process)
        result = Result(process.returncode, out, err)
        assert result.status == status, f"{' '.join(command)}: {result.status}\n{out}\n{err}"
        assert "Traceback" not in out + err, err
        attempts = self.network_log.read_text() if self.network_log.exists() else ""
        self.network_log.unlink(missing_ok=True)
        assert not (offline and attempts), f"{' '.join(command)} wanted the network:\n{attempts}"
        return result

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command as the leader of a process group."""
        return subprocess.Popen(
            command,
            cwd=self.path,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # In the background of a script SIGINT is ignored, and children would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def environment(self) -> dict[str, str]:
        """Of this interpreter's installation, and of nobody's home directory."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DVC_", "GIT_", "HF_", "PREFECT_", "PRLHF_", "PYTEST_", "COV_"))
        }
        state = self.path.parent / "state"
        return kept | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{GUARD}{os.pathsep}{self.source or self.path / 'src'}",
            "PRLHF_TEST_NETWORK_LOG": str(self.network_log),
            "PRLHF_DEVICE": "cpu",
            "OMP_NUM_THREADS": "1",
            "DVC_SITE_CACHE_DIR": str(state / "site"),
            "DVC_GLOBAL_CONFIG_DIR": str(state / "global"),
            "DVC_SYSTEM_CONFIG_DIR": str(state / "system"),
            "PREFECT_HOME": str(state / "prefect"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CEILING_DIRECTORIES": str(self.path.parent),
        }

    # -- files -----------------------------------------------------------------------------------

    def set(self, changes: Mapping[str, Any]) -> None:
        """Change keys of params.yaml, named by their dotted paths."""
        yaml = YAML()
        document = yaml.load(self / "params.yaml")
        for key, value in changes.items():
            *sections, name = key.split(".")
            node = document
            for section in sections:
                node = node[section]
            node[name] = value
        yaml.dump(document, self / "params.yaml")

    def edit(self, name: str, change: Callable[[str], str]) -> None:
        """Change the text of a file."""
        path = self / name
        before = path.read_text(encoding="utf-8")
        after = change(before)
        assert after != before
        path.write_text(after, encoding="utf-8")

    def json(self, name: str) -> Any:
        return json.loads((self / name).read_text(encoding="utf-8"))

    def digests(self, *names: str) -> dict[str, str]:
        """A hash of each file, of those in directories too; hidden ones do not count."""
        found = {}
        for name in names:
            path = self / name
            files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
            for file in files:
                if not file.name.startswith("."):
                    digest = hashlib.sha256(file.read_bytes()).hexdigest()
                    found[file.relative_to(self.path).as_posix()] = digest
        assert found
        return found

    def locked(self) -> dict[str, str]:
        """The hash of each output in dvc.lock, but for Data Docs, whose pages name the time."""
        stages = YAML(typ="safe").load(self / "dvc.lock")["stages"]
        outs = [out for stage in stages.values() for out in stage["outs"]]
        return {out["path"]: out["md5"] for out in outs if out["path"] != "reports/data_docs"}

    def not_kept(self) -> set[str]:
        """The stages whose runs DVC does not keep for later, by their outputs."""
        stages = YAML(typ="safe").load(self / "dvc.yaml")["stages"]
        found = {
            name
            for name, stage in stages.items()
            for out in [*stage.get("outs", []), *stage.get("metrics", [])]
            for how in (out.values() if isinstance(out, dict) else [])
            if how.get("persist") or not how.get("cache", True)
        }
        return {name for name in STAGES if name.partition("@")[0] in found}

    def forget(self, stage: str, *outputs: str) -> None:
        """Make DVC know nothing of a stage's results, as if it had never run."""
        yaml = YAML()
        lock = yaml.load(self / "dvc.lock")
        del lock["stages"][stage]
        yaml.dump(lock, self / "dvc.lock")
        shutil.rmtree(self / ".dvc/cache/runs")
        for name in outputs:
            path = self / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()


RESULTS = ("data/ingested", "data/prepared", "data/reference", "data/generated", "data/scores")
RESULTS += ("data/judged",)
RESULTS += ("models", "reports/curves", "reports/plots", "reports/metrics.json")
RESULTS += ("reports/headline.json",)
RESULTS += ("reports/evaluation.json", "reports/per_user.csv", "reports/per_user_wins.csv")
RESULTS += ("reports/pretrain.json", "reports/reference.json")
RESULTS += ("reports/validation.json", "reports/report.html")
"""All that the pipeline makes, but for Data Docs, whose pages name the time."""


def stop(process: subprocess.Popen[str]) -> None:
    """End a command with everything that it started, if it still runs."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def signal_at_checkpoint(project: Project, number: int, *command: str) -> tuple[Result, int]:
    """Start a command, and signal its process group when it has written a checkpoint.

    Returns:
        What came of it, and the step of the newest checkpoint that is complete.
    """

    def complete() -> set[Path]:
        return set((project / ".cache/checkpoints").glob("*/checkpoint-*/complete"))

    before = complete()
    process = project.start(*command)
    deadline = time.monotonic() + PATIENCE
    try:
        while not complete() - before:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        stop(process)
    project.network_log.unlink(missing_ok=True)
    steps = [int(path.parent.name.rpartition("-")[2]) for path in complete() - before]
    return Result(process.returncode, out, err), max(steps)


@contextlib.contextmanager
def once(factory: pytest.TempPathFactory, name: str) -> Iterator[tuple[Path, bool]]:
    """A directory that the first test process to come makes, for all of them.

    Yields its path, and whether it is still to be made. The others wait; a failure is not tried
    again by each of them.
    """
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    path, made, failed = (shared / f"{name}{suffix}" for suffix in ("", ".made", ".failed"))
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if failed.exists():
            pytest.fail(f"{name}: {failed.read_text()}")
        try:
            yield path, not made.exists()
        except BaseException as error:
            failed.write_text(str(error))
            raise
        made.touch()

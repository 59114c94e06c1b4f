"""Projects to be hard on: the repository's files, a tiny model and small settings."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
from ruamel.yaml import YAML

from benchmarks.chaos.tiny import write_model
from benchmarks.chaos.trial import Fault

ROOT: Final = Path(__file__).resolve().parents[2]
SMALL: Final = {
    "model.name": "./tiny",
    "data.path": "seed",
    "data.pairs_per_user": 8,
    "tokens.max_prompt": 64,
    "tokens.max_response": 48,
    "user_model.tokens": 2,
    "optimizer.epochs": 3.0,
    "optimizer.max_steps": None,
    "optimizer.batch_size": 8,
    "optimizer.micro_batch_size": 2,
    "optimizer.eval_every": 0.4,
    "optimizer.eval_pairs": 8,
    "optimizer.checkpoint_every": 0.2,
    "generate.prompts": 3,
    "generate.max_new_tokens": 24,
    "evaluate.sample_prompts": 2,
}
"""The main job in a minute or two."""

RESULTS: Final = (
    "data/prepared",
    "data/reference",
    "data/generated",
    "data/scores",
    "data/judged",
    "models",
    "reports/curves",
    "reports/metrics.json",
    "reports/headline.json",
    "reports/per_user.csv",
)
"""What must be the same, byte for byte, whatever happened on the way."""

WORDS: Final = ("ash", "bay", "cob", "dew", "elm", "fog", "gum", "hop", "ivy", "jam", "kit", "log")


@dataclass(frozen=True)
class Result:
    """What a command printed, and its exit status; None if it was killed for not ending."""

    status: int | None
    out: str
    err: str


class Project:
    """A directory with a copy of this repository, and commands in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def copy_to(self, path: Path) -> Project:
        shutil.copytree(self.path, path, symlinks=True)
        return Project(path)

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Of this interpreter's installation, and of nobody's home directory."""
        foreign = ("DVC_", "GIT_", "HF_", "PREFECT_", "PRLHF_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        state = self.path.parent / "state"
        return (
            kept
            | {
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(self.path / "src"),
                "PRLHF_DEVICE": "cpu",
                "OMP_NUM_THREADS": "1",
                "DVC_SITE_CACHE_DIR": str(state / "site"),
                "DVC_GLOBAL_CONFIG_DIR": str(state / "global"),
                "DVC_SYSTEM_CONFIG_DIR": str(state / "system"),
                "PREFECT_HOME": str(state / "prefect"),
                "DO_NOT_TRACK": "1",
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "PREFECT_WORKER_QUERY_SECONDS": "1",
                "GIT_CONFIG_GLOBAL": os.devnull,
                "GIT_CONFIG_NOSYSTEM": "1",
            }
            | dict(more or {})
        )

    def start(self, *command: str, **more: str) -> subprocess.Popen[str]:
        """Start a command as the leader of a process group; its output goes to files beside it."""
        Path(self.environment()["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
        with self._log("out").open("w") as out, self._log("err").open("w") as err:
            return subprocess.Popen(
                command,
                cwd=self.path,
                env=self.environment(more),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                text=True,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def finish(self, process: subprocess.Popen[str], patience: float) -> Result:
        """Wait for a command's end.

        Raises:
            Fault: It hangs, or ends in a traceback.
        """
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            raise Fault("hang", f"{process.args!r} did not end in {patience:.0f} s") from None
        finally:
            end(process)
        found = [self._log(name).read_text(errors="replace") for name in ("out", "err")]
        if any("Traceback (most recent call last)" in text for text in found):
            said = "".join(found).partition("Traceback (most recent call last)")[2]
            raise Fault("traceback", " ".join(said.strip().splitlines()[-1:])[:300])
        return Result(process.returncode, *found)

    def run(self, *command: str, patience: float, **more: str) -> Result:
        """Run a command to its end, as `finish`."""
        return self.finish(self.start(*command, **more), patience)

    def _log(self, name: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{name}")

    def digests(self) -> dict[str, str]:
        """A hash of each of the results' files; hidden ones do not count."""
        found = {}
        for name in RESULTS:
            path = self.path / name
            files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
            for file in files:
                if file.is_file() and not file.name.startswith("."):
                    digest = hashlib.sha256(file.read_bytes()).hexdigest()
                    found[file.relative_to(self.path).as_posix()] = digest
        return found

    def require_same(self, expected: Mapping[str, str]) -> None:
        """Check that the results are those of the undisturbed run.

        Raises:
            Fault: A file is missing, or differs.
        """
        found = self.digests()
        if differing := sorted(
            k for k in found.keys() | expected if found.get(k) != expected.get(k)
        ):
            raise Fault("other bytes", f"{len(differing)} files differ, {differing[0]} among them")


def end(process: subprocess.Popen[str]) -> None:
    """Kill a command, if it still runs, with everything that it started."""
    for child in descendants(process.pid):
        with contextlib.suppress(psutil.Error):
            child.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def descendants(pid: int) -> list[psutil.Process]:
    """The processes that a process started, and those that they started."""
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.Error:
        return []


# -- making them -----------------------------------------------------------------------------------


def set_parameters(path: Path, changes: Mapping[str, Any]) -> None:
    """Write the repository's params.yaml with other values, named by their dotted paths."""
    yaml = YAML()
    document = yaml.load(ROOT / "params.yaml")
    for key, value in changes.items():
        *sections, name = key.split(".")
        node = document
        for section in sections:
            node = node[section]
        node[name] = value
    yaml.dump(document, path)


def clone(path: Path) -> Project:
    """The repository's files as they are now, without results, on a tiny model and tiny data."""
    for name in repository_files():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, path / name)
    project = Project(path)
    write_model(path / "tiny")
    _write_responses(path / "seed/length/responses.jsonl.gz")
    set_parameters(path / "params.yaml", SMALL)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "clone"]):
        subprocess.run([*git, *command], cwd=path, env=project.environment(), check=True)
    return project


def repository_files() -> Iterator[str]:
    """What Git has of this repository, or would add; not its results."""
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in sorted(filter(None, listing.stdout.split("\0"))):
        results = name == "dvc.lock" or name.startswith(("reports/", "models/"))
        if not results and (ROOT / name).is_file():
            yield name


def _write_responses(path: Path) -> None:
    """Stored responses of the built-in data set `length`: a few words each."""
    lines = []
    for number in range(14):
        for instruction, size in (("short", 2), ("long", 6)):
            for turn in range(2):
                words = [WORDS[(3 * number + 5 * turn + i) % 12] for i in range(size + turn)]
                row = {"prompt_id": str(number), "prompt": f"{WORDS[number % 12]} {number}?"}
                row |= {"instruction": instruction, "response": " ".join(words)}
                lines.append(json.dumps(row | {"tokens": len(words)}))
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")

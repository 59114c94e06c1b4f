"""Checkpoints that a killed run resumes from, and that no other run ever picks up.

They live outside DVC's outputs (which are deleted before a stage runs), in a directory named by a
hash of everything that determines the result: parameters, data, base model and code.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prlhf import distributed

ROOT = Path(".cache/checkpoints")
COMPLETE = "complete"


def run_key(settings: Any, inputs: Iterable[Path]) -> str:
    """Name of a run: 16 hexadecimal digits over settings, input files and the code in use.

    Args:
        settings: anything JSON can hold.
        inputs: files, or directories whose files count.
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for path in inputs:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            digest.update(file.relative_to(path).as_posix().encode())
            _add_file(digest, file)
    for file in _code():
        _add_file(digest, file)
    return digest.hexdigest()


def _code() -> list[Path]:
    """Source files of this package that are loaded: what the result can depend on."""
    package = __name__.split(".")[0]
    loaded = (m for name, m in list(sys.modules.items()) if name.split(".")[0] == package)
    files = (getattr(module, "__file__", None) for module in loaded)
    return sorted({Path(file) for file in files if file})


def _add_file(digest: Any, path: Path) -> None:
    with path.open("rb") as stream:
        digest.update(hashlib.file_digest(stream, "blake2b").digest())


def last_complete(directory: Path) -> Path | None:
    """The newest checkpoint that was written to its end, if any; half-written ones are removed."""
    best: tuple[int, Path] | None = None
    for path in directory.glob("checkpoint-*"):
        step = path.name.rpartition("-")[2]
        if not step.isdigit():
            continue
        if not (path / COMPLETE).exists():
            shutil.rmtree(path, ignore_errors=True)
        elif best is None or int(step) > best[0]:
            best = int(step), path
    return None if best is None else best[1]


def discard(directory: Path) -> None:
    """Remove what was kept of a run whose result is safe."""
    shutil.rmtree(directory, ignore_errors=True)


class MarkComplete(TrainerCallback):
    """Marks a checkpoint once all of its files are on disk: a kill in between leaves no mark."""

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        path = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        # Every process writes the state of its random numbers.
        distributed.wait_for_all()
        if distributed.is_main():
            (path / COMPLETE).touch()

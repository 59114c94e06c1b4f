"""Time and memory of a trainer's steps, and the machine's own speed."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import Trainer, TrainerCallback

from prlhf.infra.progress import say


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Epoch:
    """One pass over a trainer's data: seconds from its first batch to its last step, mean loss."""

    seconds: float
    loss: float


def timed_epoch(trainer: Trainer) -> Epoch:
    """Run the trainer's own loop over its data once, collating, clipping and optimiser included."""
    clock = _Clock(trainer.args.device)
    trainer.add_callback(clock)
    try:
        loss = trainer.train().training_loss
    finally:
        trainer.remove_callback(clock)
    return Epoch(clock.stopped - clock.started, float(loss))


def peak_memory(trainer: Trainer) -> tuple[int, float]:
    """Bytes that a step needs at most beyond what is there before it, over one pass; mean loss.

    On CUDA the allocator's own peak; on a CPU that of PyTorch's allocations. Scratch that matrix
    libraries take by themselves is not in it.
    """
    watch = _Watch(trainer.args.device)
    trainer.add_callback(watch)
    try:
        loss = trainer.train().training_loss
    finally:
        trainer.remove_callback(watch)
    return watch.peak, float(loss)


class _Clock(TrainerCallback):
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.started = self.stopped = 0.0

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        wait_for(self.device)
        self.started = time.perf_counter()

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        wait_for(self.device)
        self.stopped = time.perf_counter()


class _Watch(TrainerCallback):
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak = 0
        self.before = 0
        self.profile: Any = None

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            self.profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self.profile.__enter__()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if self.device.type == "cuda":
            used = torch.cuda.max_memory_allocated(self.device) - self.before
        else:
            self.profile.__exit__(None, None, None)
            used = _peak_of(self.profile)
            self.profile = None
        self.peak = max(self.peak, used)


def _peak_of(finished: Any) -> int:
    """The highest running sum of allocations and releases in a profile."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "trace.json"
        finished.export_chrome_trace(str(file))
        events = json.loads(file.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    changes = [(e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]"]
    now = highest = 0
    for _, change in sorted(changes, key=lambda event: event[0]):
        now += change
        highest = max(highest, now)
    return highest


def alternate(
    tasks: Mapping[str, Callable[[], float]], rounds: int, label: str
) -> dict[str, list[float]]:
    """Run every task once a round, `A B C A B C ...`, so that none has the quieter hours.

    Args:
        tasks: by name; each returns the seconds that count.
        rounds: how often.
        label: shown with the progress.

    Returns:
        Seconds of each round by task.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(1, rounds + 1):
        for name, task in tasks.items():
            seconds[name].append(task())
        shown = ", ".join(f"{name} {times[-1]:.3g} s" for name, times in seconds.items())
        say(f"{label}: round {number}/{rounds}: {shown}")
    return seconds


def ratio(numerators: list[float], denominators: list[float]) -> dict[str, float]:
    """Median, least and most of the ratios round by round."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def ceiling(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Floating-point operations a second of a large square matrix product, the best of five."""
    n = size or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    a @ b
    for _ in range(5):
        wait_for(device)
        start = time.perf_counter()
        a @ b
        wait_for(device)
        best = min(best, time.perf_counter() - start)
    return float(2 * n**3 / best)

"""One stage, run by DVC, and what DVC made of it. Knows nothing of Prefect."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from flows.process import Commands, Stopped, TimedOut
from prlhf.project.dvc import DVC, failure

BUSY_DELAY = 5.0
"""Seconds between two tries while another DVC uses the same files."""

_RAN = re.compile(r"^(Running stage|Verifying data sources in stage) ")
_RESTORED = re.compile(r"^Stage '.+' is cached - skipping run, checking out outputs")
_UNCHANGED = re.compile(r"^(Stage )?'.+' didn't change, skipping")
# DVC does not wait for paths that another DVC reads or writes.
_BUSY = re.compile(r"' is busy, it is being blocked by:|Unable to acquire lock")


class Kind(Enum):
    """What became of a stage."""

    RAN = "ran"
    RESTORED = "restored from the run cache"
    UNCHANGED = "unchanged"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Outcome:
    """What became of a stage, and one line about it."""

    kind: Kind
    message: str

    @property
    def good(self) -> bool:
        return self.kind in {Kind.RAN, Kind.RESTORED, Kind.UNCHANGED}


def reproduce(
    name: str,
    commands: Commands,
    *,
    root: Path,
    variables: Mapping[str, str],
    on_line: Callable[[str], None],
    timeout: float | None = None,
) -> Outcome:
    """Bring one stage up to date: `dvc repro --single-item NAME`.

    Args:
        name: The stage.
        commands: What ends the stage's processes when the run ends.
        root: The project.
        variables: The environment.
        on_line: Called with each line of output.
        timeout: Seconds that it may take.
    """
    started = time.monotonic()
    while True:
        lines: list[str] = []

        def keep(line: str, lines: list[str] = lines) -> None:
            lines.append(line)
            on_line(line)

        left = None if timeout is None else max(timeout - (time.monotonic() - started), 0.1)
        try:
            status = commands.run(
                [*DVC, "repro", "--single-item", name],
                cwd=root,
                environment=variables,
                on_line=keep,
                timeout=left,
            )
        except TimedOut:
            return Outcome(Kind.TIMED_OUT, f"error: {name}: timed out after {timeout:g} s")
        except Stopped:
            return Outcome(Kind.STOPPED, "stopped")
        if status == 0:
            took = time.monotonic() - started
            kind = succeeded(lines)
            return Outcome(
                kind, f"{kind.value} in {took:.0f} s" if kind is Kind.RAN else kind.value
            )
        if not any(_RAN.match(line) for line in lines) and any(map(_BUSY.search, lines)):
            on_line(f"another DVC uses the same files: trying again in {BUSY_DELAY:g} s")
            time.sleep(BUSY_DELAY)
            continue
        return Outcome(Kind.FAILED, f"error: {failure(lines, name, status)}")


def succeeded(lines: list[str]) -> Kind:
    """What DVC says that it did."""
    if any(map(_RESTORED.match, lines)):
        return Kind.RESTORED
    if any(map(_UNCHANGED.match, lines)):
        return Kind.UNCHANGED
    return Kind.RAN

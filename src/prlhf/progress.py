"""Progress on stderr: a bar on a terminal, plain lines where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")

INTERVAL = 10.0
"""Seconds between two plain lines."""

_silent = False


def silence() -> None:
    """Say nothing from now on: another process of the same run does."""
    global _silent
    _silent = True


def say(message: str) -> None:
    """Print one status line on stderr."""
    if _silent:
        return
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def track(iterable: Iterable[T], *, total: int, label: str, unit: str) -> Iterator[T]:
    """Yield from `iterable`, reporting how far it is.

    Args:
        iterable: What to go through.
        total: How many items it has.
        label: What is being done, e.g. the stage's name.
        unit: What one item is, in the plural.
    """
    with Progress(total, label, unit) as progress:
        for item in iterable:
            yield item
            progress.advance()


class Progress:
    """Count work done: `with Progress(680, "reference", "texts") as p: p.advance(8)`.

    On a terminal this is a bar. Elsewhere it is a line at most every `INTERVAL` seconds, such as
    `reference: 120/680 texts, 14.2 texts/s, ETA 0:40`, and none at all for work shorter than that.
    """

    def __init__(self, total: int, label: str, unit: str) -> None:
        self.total = total
        self.label = label
        self.unit = unit
        self.done = 0
        self._fields: dict[str, object] = {}
        self._bar: tqdm[object] | None = None
        self._started = self._printed = time.monotonic()
        self._shown = 0

    def __enter__(self) -> Self:
        self._started = self._printed = time.monotonic()
        if sys.stderr.isatty() and not _silent:
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.total, desc=self.label, unit=f" {self.unit}", dynamic_ncols=True
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None and 0 < self._shown < self.done:
            say(self._line(time.monotonic()))

    def advance(self, n: int = 1, **fields: object) -> None:
        """Count `n` more items; `fields` (such as a loss) are shown until they change."""
        self.done += n
        self._fields.update(fields)
        if self._bar is not None:
            if fields:
                self._bar.set_postfix(
                    {name: _short(value) for name, value in self._fields.items()}, refresh=False
                )
            self._bar.update(n)
            return
        now = time.monotonic()
        if now - self._printed >= INTERVAL:
            self._printed, self._shown = now, self.done
            say(self._line(now))

    def _line(self, now: float) -> str:
        elapsed = max(now - self._started, 1e-9)
        rate = self.done / elapsed
        parts = [
            f"{self.label}: {self.done}/{self.total} {self.unit}",
            f"{rate:.3g} {self.unit}/s" if rate < 100 else f"{rate:.0f} {self.unit}/s",
        ]
        if self.done < self.total and rate > 0:
            parts.append(f"ETA {clock((self.total - self.done) / rate)}")
        else:
            parts.append(f"took {clock(elapsed)}")
        parts += [f"{name} {_short(value)}" for name, value in self._fields.items()]
        return ", ".join(parts)


def clock(seconds: float) -> str:
    """Seconds as `M:SS` or `H:MM:SS`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

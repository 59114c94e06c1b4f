"""Progress on stderr: a bar on a terminal, plain lines elsewhere, nothing from libraries."""

import logging
import sys
import time
import warnings
from typing import Any, Self

INTERVAL = 10.0
"""Seconds between two plain lines."""

_silent = False


def silence() -> None:
    """Say nothing from now on: the main process reports for all."""
    global _silent
    _silent = True


def say(message: str) -> None:
    """Print one status line on stderr."""
    if not _silent:
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()


def quiet_libraries() -> None:
    """Keep the warnings of libraries off the terminal: what users should know, we say.

    Whoever wants to see them asks Python: `PYTHONWARNINGS=default`.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    # Without any handler, Python prints what libraries log.
    logging.getLogger().addHandler(logging.NullHandler())


def quiet_transformers() -> None:
    """Silence banners, progress bars and warnings that are meant for library authors."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
    warnings.filterwarnings("ignore", message=r"Passing `\w+` with `inputs_embeds`")
    hub_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


class Progress:
    """Count work done: `with Progress(680, "reference", "texts") as p: p.advance(8)`.

    On a terminal this is a bar. Elsewhere it is a line at most every `INTERVAL` seconds, such as
    `reference: 120/680 texts, 14.2 texts/s, ETA 0:40`; shorter work prints nothing.
    """

    def __init__(self, total: int, label: str, unit: str) -> None:
        self.total = total
        self.label = label
        self.unit = unit
        self.done = 0
        self._fields: dict[str, object] = {}
        self._bar: Any = None  # of tqdm, on a terminal
        self._started = self._printed = time.monotonic()
        self._shown = 0

    def __enter__(self) -> Self:
        if sys.stderr.isatty() and not _silent:
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.total, desc=self.label, unit=f" {self.unit}", dynamic_ncols=True
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
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
                shown = {name: _short(value) for name, value in self._fields.items()}
                self._bar.set_postfix(shown, refresh=False)
            self._bar.update(n)
            return
        now = time.monotonic()
        if now - self._printed >= INTERVAL:
            self._printed, self._shown = now, self.done
            say(self._line(now))

    def expect(self, more: int) -> None:
        """Count on more items than thought."""
        self.total += more
        if self._bar is not None:
            self._bar.total = self.total

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

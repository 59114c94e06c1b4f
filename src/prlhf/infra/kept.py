"""Work that a run keeps while it goes on, so that a killed one does not begin anew.

What is kept by time serves a machine that lives for two minutes as well as one that lives for days:
neither the speed of the machine nor the size of the data decides how much is lost.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prlhf.infra.io import atomic_path

INTERVAL: Final = 30.0
"""Seconds of work that a killed run loses, about."""

SHARE: Final = 0.1
"""The share of its time that a run keeps its work in, at most: large work is kept less often."""

SUFFIX: Final = ".safetensors"


class Pace:
    """When to keep work.

    Args:
        clock: seconds from any moment on.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept = clock()
        self._cost = 0.0

    def due(self) -> bool:
        """Whether there is enough to lose by now."""
        return self._clock() - self._kept >= max(INTERVAL, self._cost / SHARE)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """A block that keeps what has been done; how long it takes counts."""
        start = self._clock()
        yield
        self._kept = self._clock()
        self._cost = self._kept - start


class KeptWork:
    """Tensors by key, one file a key, which is there whole or not at all.

    Several processes may write, each to keys of its own. A disk that is full or read-only keeps
    nothing, which is no error.

    Args:
        directory: made when something is kept, and a whole run's: what it holds must be the same in
            every run that looks here (see `prlhf.infra.io.run_key`).
        pace: when this is to be done.
    """

    def __init__(self, directory: Path, pace: Pace | None = None) -> None:
        self.directory = directory
        self.pace = pace or Pace()

    def part(self, name: str) -> "KeptWork":
        """Where a part of the run keeps its work, at the same pace."""
        return KeptWork(self.directory / name, self.pace)

    def keys(self) -> list[str]:
        """What is there, in order."""
        found = (path.name for path in self.directory.glob(f"*{SUFFIX}"))
        return sorted(name.removesuffix(SUFFIX) for name in found if not name.startswith("."))

    def save(self, key: str, tensors: Mapping[str, Tensor], about: Any = None) -> None:
        """Keep tensors, and anything that JSON can hold, in place of what was there."""
        with self.pace.keeping(), suppress(OSError), atomic_path(self._file(key)) as partial:
            whole = {name: each.contiguous() for name, each in tensors.items()}
            save_file(whole, partial, {"about": json.dumps(about)})

    def load(self, key: str) -> tuple[dict[str, Tensor], Any] | None:
        """The tensors and what else was kept; None if nothing was, or if it is damaged."""
        try:
            with safe_open(self._file(key), framework="pt") as file:
                # Copies: torch aligns its own memory, and kernels may round by how it is aligned.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
                return tensors, json.loads(file.metadata()["about"])
        except (OSError, SafetensorError):
            return None

    def drop(self, key: str) -> None:
        """Forget what was kept."""
        with suppress(OSError):
            self._file(key).unlink()

    def _file(self, key: str) -> Path:
        return self.directory / f"{key}{SUFFIX}"

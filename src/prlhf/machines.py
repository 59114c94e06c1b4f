"""Several machines: which of them this is, and how they learn what machine 0 runs."""

from __future__ import annotations

import contextlib
import json
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from prlhf.errors import UserError
from prlhf.progress import say

PORT = 29500
"""Where machine 0 listens, unless MASTER_PORT says otherwise."""

DOCS = "docs/distributed.md has examples"

_POLL = 0.2
_RUN = "prlhf/run"


@dataclass(frozen=True)
class Place:
    """Which of the machines this is, and where machine 0 listens."""

    machine: int
    address: str
    port: int

    @classmethod
    def of(cls, environment: Mapping[str, str], machines: int) -> Place:
        """Read NODE_RANK, MASTER_ADDR and MASTER_PORT.

        Raises:
            UserError: one is missing or makes no sense.
        """
        address = environment.get("MASTER_ADDR")
        if not address:
            raise UserError(
                f"launch.machines is {machines}, but nothing says where machine 0 is",
                where="MASTER_ADDR",
                fix=f"set it to machine 0's name or address; {DOCS}",
            )
        machine = _number(environment, "NODE_RANK", None, machines - 1)
        return cls(machine, address, _number(environment, "MASTER_PORT", PORT, 65535))

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


def _number(environment: Mapping[str, str], name: str, default: int | None, most: int) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal() or int(text) > most:
        raise UserError(
            "is not set" if text is None else f"{text!r} is none",
            where=name,
            fix=f"set it to a number from 0 to {most}; {DOCS}",
        )
    return int(text)


@contextlib.contextmanager
def announced(label: str, command: Sequence[str], machines: int, place: Place) -> Iterator[None]:
    """On machine 0: tell the other machines what runs, and wait until all of them are there.

    Args:
        label: what the stage is called in messages.
        command: its command line, without `prlhf`.
        machines: how many there are, this one counted.
        place: where this machine listens, as long as the context lasts.

    Raises:
        UserError: it cannot listen there.
    """
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

    try:
        store = TCPStore(
            place.address, place.port, is_master=True, wait_for_workers=False, multi_tenant=True
        )
    except DistError as error:
        raise UserError(
            f"cannot listen at {place}: {str(error).splitlines()[0]}",
            where=label,
            fix="MASTER_ADDR is this machine's address, MASTER_PORT a free port of it",
        ) from error
    run = {"run": uuid.uuid4().hex, "label": label, "command": list(command)}
    store.set(_RUN, json.dumps(run))
    others = [f"{_RUN}/{machine}" for machine in range(1, machines)]
    say(f"{label}: waiting for {len(others)} more machine{'s'[: len(others) - 1]} at {place}")
    while not store.check(others):
        time.sleep(_POLL)
    yield


def next_run(place: Place, last: str | None, patience: float | None) -> dict[str, Any] | None:
    """On another machine: what machine 0 runs next, as soon as it runs something.

    Args:
        place: this machine, and where machine 0 listens.
        last: the run that this machine has taken part in before.
        patience: seconds to wait at most; None for any time.

    Returns:
        Its `run` (a name of its own), `label` and `command`; None if nothing came.
    """
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

    deadline = None if patience is None else time.monotonic() + patience
    while deadline is None or time.monotonic() < deadline:
        with contextlib.suppress(DistError, OSError):
            # The store reports in its own way, at length, that nobody is there (yet).
            socket.create_connection((place.address, place.port), timeout=1).close()
            store = TCPStore(
                place.address,
                place.port,
                is_master=False,
                wait_for_workers=False,
                timeout=timedelta(seconds=1),
            )
            if store.check([_RUN]):
                found: dict[str, Any] = json.loads(store.get(_RUN))
                if found["run"] != last:
                    store.set(f"{_RUN}/{place.machine}", "here")
                    return found
        time.sleep(_POLL)
    return None

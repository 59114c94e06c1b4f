"""A worker that is killed cannot end its flow runs: they notice, and end themselves."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import psutil

PERIOD = 1.0


def workers() -> list[psutil.Process]:
    """The processes of Prefect that this one was started by; none outside of a worker."""
    if "PREFECT__FLOW_RUN_ID" not in os.environ:
        return []
    found = []
    for process in psutil.Process().parents():
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            break
        if "prefect" not in command:
            break
        found.append(process)
    return found


def watch(on_gone: Callable[[], None], watched: list[psutil.Process]) -> None:
    """When one of some processes is gone, call a function and end this process as by SIGTERM."""
    if not watched:
        return

    def poll() -> None:
        while all(_alive(process) for process in watched):
            time.sleep(PERIOD)
        on_gone()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=poll, daemon=True).start()


def _alive(process: psutil.Process) -> bool:
    try:
        # A process is told from another with its number by the time that it started.
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False

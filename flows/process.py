"""Commands whose whole process tree ends with them, or with this process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

SUPERVISOR = Path(__file__).with_name("supervisor.py")
GRACE = 10.0
"""Seconds that a command has to end after Ctrl-C's signal."""

_LINGER = 5.0


class Stopped(Exception):
    """The command was ended from outside: by `Commands.stop`, or by whoever killed its watcher."""


class TimedOut(Exception):
    """The command took too long, and was ended."""


class Commands:
    """Runs commands, from any number of threads, until it is told to stop.

    Args:
        grace: Seconds that a command has to end after Ctrl-C's signal, before it is killed.
    """

    def __init__(self, grace: float = GRACE) -> None:
        self._grace = grace
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    @property
    def stopped(self) -> bool:
        return self._stopped

    def run(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        on_line: Callable[[str], None],
        timeout: float | None = None,
    ) -> int:
        """Run a command to its end and return its exit status.

        Args:
            command: The command line.
            cwd: Where it runs.
            environment: All of its environment.
            on_line: Called with each line of its output, standard error included, as it comes.
            timeout: Seconds that it may take; None for any time.

        Raises:
            TimedOut: It took longer; all its processes are gone.
            Stopped: `stop` was called; all its processes are gone, or will be within the grace.
        """
        with self._lock:
            if self._stopped:
                raise Stopped
            process = subprocess.Popen(
                # -P: the modules beside the supervisor must not stand in for others'.
                [sys.executable, "-P", str(SUPERVISOR), str(self._grace), *command],
                cwd=cwd,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
                bufsize=1,
                start_new_session=True,
            )
            self._running.add(process)
        reader = threading.Thread(target=_read, args=(process, on_line), daemon=True)
        reader.start()
        try:
            late = not _ended(process, timeout)
            if late:
                _close(process)
            status = process.wait()
        except BaseException:
            _close(process)
            raise
        finally:
            _end_session(process)
            with self._lock:
                self._running.discard(process)
        # All writers are gone, unless one made itself independent and is past finding.
        reader.join(_LINGER)
        if late:
            raise TimedOut
        if self._stopped or status < 0:
            raise Stopped
        return status

    def stop(self) -> None:
        """End all commands; those to come do not start. Does not wait."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                _close(process)


def _ended(process: subprocess.Popen[str], timeout: float | None) -> bool:
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        return False
    return True


def _read(process: subprocess.Popen[str], on_line: Callable[[str], None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        on_line(line.rstrip())


def _close(process: subprocess.Popen[str]) -> None:
    """Let the supervisor know that the command is to end."""
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError):
        process.stdin.close()


def _end_session(process: subprocess.Popen[str]) -> None:
    """Kill what a supervisor leaves behind that was itself killed."""
    if process.poll() is None or process.returncode >= 0:
        return
    deadline = time.monotonic() + _LINGER
    while time.monotonic() < deadline:
        left = [other for other in psutil.process_iter() if _session(other.pid) == process.pid]
        left = [other for other in left if _alive(other)]
        if not left:
            return
        for other in left:
            with contextlib.suppress(psutil.Error):
                other.kill()
        time.sleep(0.05)


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False

"""Runs a command and ends everything it started as soon as whoever asked for it is gone.

    python supervisor.py GRACE COMMAND...

Standard input is a pipe that nobody writes to. Its end means that the parent wants the command
stopped, or is dead itself, however it died: the kernel closes the pipe. The command's processes
then get Ctrl-C's signal, and SIGKILL after GRACE seconds. When the command ends by itself, or is
killed alone, nothing that it started survives it either.

`process.py` starts this, in a session of its own and by file name, without the rest of the flows.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

import psutil

STOPPED = 128 + signal.SIGINT
PR_SET_CHILD_SUBREAPER = 36
POLL = 0.05


def main(arguments: list[str]) -> int:
    """Run the command; return its exit status, or `STOPPED`."""
    grace, command = float(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        # Processes whose parents are gone become this one's children, and are found.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_default_signals)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # From here on only the command's processes hold the output: when it ends, they are gone.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)

    stopped = False
    while child.poll() is None and not stopped:
        readable, _, _ = select.select([0, ended], [], [])
        if ended in readable:
            os.read(ended, 4096)
        stopped = 0 in readable and not os.read(0, 4096)
    if stopped:
        _signal_all(signal.SIGINT)
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline and _others(child):
            time.sleep(POLL)
    while _signal_all(signal.SIGKILL, child):
        time.sleep(POLL)
    status = child.wait()
    if stopped:
        return STOPPED
    return status if status >= 0 else 128 - status


def _default_signals() -> None:
    # In the background of a script SIGINT is ignored, and children would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.setpgid(0, 0)


def _signal_all(number: int, child: subprocess.Popen[bytes] | None = None) -> bool:
    """Signal every process that is left; whether there was one."""
    others = _others(child)
    for process in others:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
    return bool(others)


def _others(child: subprocess.Popen[bytes] | None = None) -> list[psutil.Process]:
    """The living descendants of this process, and what else is in its session."""
    if child is not None:
        # Reaped at once: DVC takes a dead process that is still listed for a running one.
        child.poll()
    own, session = os.getpid(), os.getsid(0)
    found = {process.pid: process for process in psutil.Process().children(recursive=True)}
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            if os.getsid(process.pid) == session:
                found[process.pid] = process
    found.pop(own, None)
    return [process for process in found.values() if _alive(process)]


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

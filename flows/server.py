"""The Prefect server of a run: the one that is configured, or one that the run starts for itself.

Prefect, left alone, starts a server that died anew until 300 seconds are over, and shows what it
printed. Here a server that dies ends the run at once, with its own last error as the reason.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Set
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from flows import PROXIES
from prlhf.infra.errors import EXIT_USER, UserError
from prlhf.infra.progress import say
from prlhf.project.dvc import ending

PATIENCE = 300.0
"""Seconds that a server may take to answer: on a busy machine twenty are not enough."""

TELL = 10.0
"""Seconds after which a run that waits for its server says so."""

GRACE = 15.0
"""Seconds that a run has to end after its server did: enough to stop its stages."""

CERTIFICATES = frozenset({"ssl_cert_dir", "ssl_cert_file"})
HOME_FIX = "set PREFECT_HOME to a directory that you can write to"

_POLL = 0.1
_WATCH_PERIOD = 1.0
_TRIES = 3  # ports: another program may take one before the server does
_TAKEN = "address already in use"
_EXCEPTION = re.compile(r"^([\w.]*(?:Error|Exception|Exit|Interrupt)): *(.*)")
# Ends a server whose run is gone: the end of its input tells, however that came.
_WATCH = "import os, signal, sys; sys.stdin.read(); os.kill(int(sys.argv[1]), signal.SIGTERM)"


@contextlib.contextmanager
def reached() -> Iterator[None]:
    """Reach the server that is configured, or start one that ends with this process.

    Raises:
        UserError: The configured server does not answer, none can be started, or Prefect cannot be
            used at all; or the server that was started ended before the run did.
    """
    # Else its clients would not use the server that is started here.
    os.environ["PREFECT_SERVER_EPHEMERAL_ENABLED"] = "true"
    _require_network()
    with _telling("Prefect cannot be used"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what is told below, or never mattered
        if "PREFECT_HOME" not in os.environ:
            Path.home()  # else Prefect tells it, too, in lines of its own
        from prefect import get_client
        from prefect.settings import PREFECT_API_URL, PREFECT_HOME
    if PREFECT_API_URL.value():
        with get_client(sync_client=True) as client:
            if (problem := client.api_healthcheck()) is not None:
                proxies = _named(PROXIES)
                through = f"; the proxy that {proxies} names may be in the way" if proxies else ""
                raise UserError(
                    f"no Prefect server answers: {problem}",
                    where=str(client.api_url),
                    fix=f"`prefect server start`, or unset PREFECT_API_URL to do without{through}",
                )
        yield
        return
    require_home(PREFECT_HOME.value())
    with tempfile.TemporaryFile() as log:
        process = _start(log)
        over, lost = threading.Event(), threading.Event()
        threading.Thread(target=_guard, args=(process, log, over, lost), daemon=True).start()
        try:
            yield
        except BaseException as error:
            if lost.is_set():
                raise UserError(_why(process, log)) from error
            raise
        finally:
            over.set()


def _guard(
    process: subprocess.Popen[bytes], log: IO[bytes], over: threading.Event, lost: threading.Event
) -> None:
    """End this process when the server ends before the run is `over`; `lost` says why.

    By SIGTERM, as a user would. Prefect then wants to tell the server, again and again.
    """
    while process.poll() is None:
        if over.wait(_WATCH_PERIOD):
            return
    lost.set()
    logging.disable(logging.CRITICAL)
    os.kill(os.getpid(), signal.SIGTERM)
    if not over.wait(GRACE):
        say(f"error: {_why(process, log)}")
        os._exit(EXIT_USER)


def require_home(home: Path) -> None:
    """Refuse a PREFECT_HOME that Prefect cannot keep its database in.

    Raises:
        UserError: It is no directory, cannot be made, or nothing can be written there.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as probe:
            probe.write(b"-")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        problem = f"Prefect keeps its database here, and cannot: {reason}"
        raise UserError(problem, where=home, fix=HOME_FIX) from error


def reason(printed: str) -> str:
    """Why a server ended, from what it printed: its last exception, or else its last line."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    for line in reversed(lines):
        if found := _EXCEPTION.match(line):
            return found[2] or found[1]
    return lines[-1] if lines else ""


def _require_network() -> None:
    """Refuse variables for the network that httpx, by which Prefect connects, does not take."""
    import httpx

    try:
        httpx.Client().close()
    except OSError as error:
        raise UserError(
            f"certificates cannot be read: {(error.strerror or str(error)).lower()}",
            where=_named(CERTIFICATES),
            fix="mend or unset it",
        ) from error
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise UserError(
            f"Prefect cannot use this proxy: {error}", where=_named(PROXIES), fix="mend or unset it"
        ) from error


def _named(what: Set[str]) -> str:
    """The variables that are set, of some. What is in them may hold a password."""
    return " or ".join(sorted(name for name in os.environ if name.lower() in what))


@contextlib.contextmanager
def _telling(problem: str) -> Iterator[None]:
    """Tell settings that Prefect does not take in one line."""
    try:
        yield
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        text, fix = str(error), "see `prefect config view`"
        if isinstance(error, RuntimeError):
            fix = HOME_FIX
        elif isinstance(error, ValidationError):  # a line each for what, why and where to read
            first = error.errors()[0]
            text = f"{error.title}.{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise UserError(f"{problem}: {text}", fix=fix) from error


def _start(log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a server that ends with this process, and have Prefect's clients use it."""
    from prefect.server.api.server import SubprocessASGIServer

    # The one object by which every client in this process finds, or else starts, the server.
    server = SubprocessASGIServer()
    atexit.register(server.stop)
    for left in reversed(range(_TRIES)):
        server.port = server.find_available_port()
        server.server_process = process = _launch(server.port, log)
        server.running = True
        if _answers(process, f"{server.api_url}/health"):
            return process
        if process.poll() is None or not left or _TAKEN not in _printed(log):
            break
    server.stop()
    raise UserError(_why(process, log), fix="`prefect server start` shows all that it says")


def _launch(port: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """As Prefect does it, but for where its output goes, and without Ctrl-C.

    That goes to every process of a terminal. The server must not have it, so that it can still note
    how the run ended: it inherits that the signal is blocked.
    """
    import prefect
    from prefect.settings import get_current_settings

    own = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
    own |= {"PREFECT__SERVER_FINAL": "1"}
    package = str(prefect.__module_path__.parent)
    where = ("--app-dir", package, "--host", "127.0.0.1", "--port", str(port))
    how = ("--factory", "--log-level", "error", "--lifespan", "on")
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "prefect.server.api.server:create_app", *where, *how],
            env=os.environ | own | settings,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    subprocess.Popen(
        [sys.executable, "-c", _WATCH, str(process.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    return process


def _answers(process: subprocess.Popen[bytes], address: str) -> bool:
    """Wait until a server answers; whether it did before it ended, or its time was up."""
    import httpx

    started, told = time.monotonic(), False
    with httpx.Client(trust_env=False) as client:
        while process.poll() is None and (waited := time.monotonic() - started) < PATIENCE:
            with contextlib.suppress(httpx.TransportError):
                if client.get(address).is_success:
                    return True
            if waited > TELL and not told:
                say(f"waiting for Prefect's server (at most {PATIENCE:g} s)")
                told = True
            time.sleep(_POLL)
    return False


def _why(process: subprocess.Popen[bytes], log: IO[bytes]) -> str:
    status = process.poll()
    if status is None:
        return f"Prefect's server does not answer after {PATIENCE:g} s"
    return ": ".join(filter(None, [f"Prefect's server {ending(status)}", reason(_printed(log))]))


def _printed(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace")

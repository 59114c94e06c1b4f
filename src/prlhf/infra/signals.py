"""Signals that end a command, without losing any.

A signal handler's exception is raised wherever the main thread happens to be. In a finaliser or a
weak reference's callback (asyncio and imports have many) nobody can catch it: Python reports an
"unraisable" exception and goes on as if no signal had come. Within asyncio's own code it breaks the
event loop, which then reports another error.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, TypeVar

from prlhf.infra.errors import EXIT_TERMINATED

DELAY = 0.05
"""Seconds until a signal is sent again: by then the finaliser is over."""

T = TypeVar("T")


class Terminated(KeyboardInterrupt):
    """SIGTERM: unwinds like Ctrl-C, so that nothing half-written stays behind."""

    signal = signal.SIGTERM


class TerminatedExit(SystemExit):
    """The same, for code that gives KeyboardInterrupt a meaning of its own."""

    signal = signal.SIGTERM

    def __init__(self) -> None:
        super().__init__(EXIT_TERMINATED)


def ignored(number: signal.Signals) -> bool:
    """Whether we were started to ignore a signal, by `nohup` or as a script's background job.

    What we start then ignores it as well.
    """
    return signal.getsignal(number) is signal.SIG_IGN


def handle(terminated: type[BaseException] = Terminated) -> None:
    """Raise `terminated` at SIGTERM; send a signal again if Python could not raise its exception.

    Args:
        terminated: An exception that takes no arguments and whose `signal` is SIGTERM.
    """

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise terminated()

    signal.signal(signal.SIGTERM, terminate)
    sys.unraisablehook = _send_again


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in which SIGTERM, like Ctrl-C, cancels `main`, so that it can clean up.

    Raises:
        Terminated: SIGTERM came.
        KeyboardInterrupt: SIGINT came.
    """
    import asyncio  # slow to import

    if threading.current_thread() is not threading.main_thread():
        return asyncio.run(main)
    stopped = False

    async def cancellable() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def cancel(number: int, frame: FrameType | None) -> None:
            nonlocal stopped
            stopped = True
            loop.call_soon_threadsafe(task.cancel)

        before = signal.signal(signal.SIGTERM, cancel)
        try:
            return await main
        finally:
            signal.signal(signal.SIGTERM, before)

    try:
        return asyncio.run(cancellable())
    except asyncio.CancelledError:
        if stopped:
            raise Terminated from None
        raise


class _TimeUp(BaseException):
    """No `Exception`, so that what the block does about those lets it pass."""


@contextmanager
def time_limit(seconds: float, error: Exception) -> Iterator[None]:
    """A block that raises `error` once this process has computed for `seconds` in it.

    Computing time, because a busy machine is nobody's fault. Signals reach only Python code, and
    only that of the main thread: elsewhere there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise _TimeUp

    before = signal.signal(signal.SIGPROF, stop)
    try:
        # Again after as long, because a finaliser may have swallowed it.
        signal.setitimer(signal.ITIMER_PROF, seconds, seconds)
        yield
    except _TimeUp:
        raise error from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _send_again(unraisable: sys.UnraisableHookArgs) -> None:
    error = unraisable.exc_value
    if type(error) is KeyboardInterrupt:
        number: object = signal.SIGINT
    else:
        # Prefect's exceptions name theirs `signal`, as those above do; torch's launcher's `sigval`.
        number = getattr(error, "signal", getattr(error, "sigval", None))
    if not isinstance(number, int):  # no signal's handler raised it
        sys.__unraisablehook__(unraisable)
        return
    # Later, because this runs in the finaliser, and to the main thread, to end a call it waits in.
    main = threading.main_thread().ident
    timer = threading.Timer(DELAY, signal.pthread_kill, (main, number))
    timer.daemon = True
    timer.start()

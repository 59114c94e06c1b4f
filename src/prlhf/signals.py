"""Signals that end a command, none of them lost.

Python raises what a signal's handler raises wherever the main thread happens to be. In a finaliser
or the callback of a weak reference (asyncio and imports make many) nobody can catch it: Python
reports an "unraisable" exception and goes on as if no signal had come. Amid the bookkeeping of
asynchronous code it breaks that code, which then reports something else.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Coroutine
from types import FrameType
from typing import Any, NoReturn, TypeVar

from prlhf.failures import EXIT_TERMINATED

DELAY = 0.05
"""Seconds, by which the finaliser is over."""

T = TypeVar("T")


class Terminated(KeyboardInterrupt):
    """SIGTERM: unwinds like Ctrl-C, so that nothing half-written stays behind."""

    signal = signal.SIGTERM


class TerminatedExit(SystemExit):
    """The same, for code that gives KeyboardInterrupt a meaning of its own."""

    signal = signal.SIGTERM

    def __init__(self) -> None:
        super().__init__(EXIT_TERMINATED)


def handle(terminated: type[BaseException] = Terminated) -> None:
    """Raise `terminated` at SIGTERM; send it and SIGINT again where Python swallows what is raised.

    Args:
        terminated: Made without arguments; its `signal` is SIGTERM.
    """

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise terminated()

    signal.signal(signal.SIGTERM, terminate)
    sys.unraisablehook = _send_again


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, where SIGTERM does what Ctrl-C does: cancel `main`, which can then clean up.

    Raises:
        Terminated: SIGTERM came.
        KeyboardInterrupt: SIGINT came.
    """
    import asyncio  # a third of what it takes to start a command

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


def _send_again(unraisable: sys.UnraisableHookArgs) -> None:
    number = _signal_of(unraisable.exc_value)
    if number is None:
        sys.__unraisablehook__(unraisable)
        return
    # Not at once: this runs in the finaliser. To the main thread: a call it waits in is to end.
    main = threading.main_thread().ident
    timer = threading.Timer(DELAY, signal.pthread_kill, (main, number))
    timer.daemon = True
    timer.start()


def _signal_of(error: BaseException | None) -> int | None:
    """The signal whose handler raised an exception."""
    if type(error) is KeyboardInterrupt:
        return signal.SIGINT
    # Prefect's exceptions name theirs `signal`, as those above do; torch's launcher's `sigval`.
    number = getattr(error, "signal", getattr(error, "sigval", None))
    return number if isinstance(number, int) else None

"""SIGTERM during asynchronous work; the rest is tested with commands, in test_cli.py."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time

import pytest

from prlhf.infra import signals


async def answer() -> int:
    return 42


async def terminated(cleaned: list[str]) -> None:
    def send() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("what comes after the signal still runs")

    loop = asyncio.get_running_loop()
    said: list[str] = []
    loop.set_exception_handler(lambda _, context: said.append(str(context["exception"])))
    loop.call_soon(send)
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0)
        cleaned += said


def test_a_task_that_is_terminated_cleans_up_before_the_command_ends():
    def before(number: int, frame: object) -> None:
        raise AssertionError("not while the task runs")

    kept = signal.signal(signal.SIGTERM, before)
    cleaned: list[str] = []
    try:
        with pytest.raises(signals.Terminated):
            signals.run(terminated(cleaned))
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGTERM, kept)
    assert cleaned == ["what comes after the signal still runs"]


def compute() -> None:
    """Half a second of it at least, whatever fails within."""
    end = time.process_time() + 0.5
    while time.process_time() < end:
        with contextlib.suppress(Exception):
            raise ValueError


def test_a_block_that_computes_too_long_ends_in_the_error_given():
    def before(number: int, frame: object) -> None:
        raise AssertionError("the limit is over with its block")

    kept = signal.signal(signal.SIGPROF, before)
    try:
        late = LookupError("too long")
        with pytest.raises(LookupError) as caught, signals.time_limit(0.05, late):
            compute()
        assert caught.value is late
        assert signal.getsignal(signal.SIGPROF) is before
        assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
        with signals.time_limit(3600, LookupError()):
            assert signal.getitimer(signal.ITIMER_PROF)[0] > 0
        compute()
    finally:
        signal.signal(signal.SIGPROF, kept)


def test_a_thread_has_no_limit():
    ended: list[bool] = []

    def limited() -> None:
        with signals.time_limit(0.05, LookupError()):
            compute()
            ended.append(True)

    thread = threading.Thread(target=limited)
    thread.start()
    thread.join()
    assert ended == [True]


def test_what_nohup_ignores_is_known():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signals.ignored(signal.SIGHUP)
        for handler in (signal.SIG_DFL, lambda *_: None):
            signal.signal(signal.SIGHUP, handler)
            assert not signals.ignored(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_task_gives_its_result_in_any_thread():
    found: list[int] = [signals.run(answer())]
    thread = threading.Thread(target=lambda: found.append(signals.run(answer())))
    thread.start()
    thread.join()
    assert found == [42, 42]


def test_a_task_that_cancels_itself_is_not_terminated():
    async def cancels() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        signals.run(cancels())

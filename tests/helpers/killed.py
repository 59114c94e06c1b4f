"""Runs that are killed again and again, right after they have kept their work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from prlhf.infra.kept import INTERVAL, Pace

T = TypeVar("T")


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


class Clock:
    """A clock that goes on by `step` seconds whenever somebody looks at it."""

    def __init__(self, step: float) -> None:
        self.now = 0.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Deadly(Pace):
    """A pace whose run dies when it has kept its work for the `lives`-th time."""

    def __init__(self, clock: Clock, lives: int) -> None:
        super().__init__(clock)
        self.lives = lives

    @contextmanager
    def keeping(self) -> Iterator[None]:
        with super().keeping():
            yield
        self.lives -= 1
        if self.lives == 0:
            raise Killed


def until_it_ends(run: Callable[[Pace], T], *, looks: float, lives: int = 1) -> tuple[T, int]:
    """Start a run again each time that it is killed.

    Args:
        run: what has to come to an end.
        looks: how often it looks at the clock until it is time to keep work.
        lives: how often it keeps work before it is killed.

    Returns:
        What it returned at last, and how often it was killed.
    """
    for killed in range(500):
        try:
            return run(Deadly(Clock(INTERVAL / looks), lives)), killed
        except Killed:
            pass
    raise AssertionError("it makes no progress")

"""Errors that the user, not the programmer, has to mend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class UserError(Exception):
    """A mistake its user can mend.

    The command line shows it as one line, `error: WHERE: PROBLEM (FIX)`, without a traceback,
    and exits with code 2.

    Args:
        problem: What is wrong, in one line.
        where: The file (with or without `:LINE`), parameter or command it was found in.
        fix: What to do about it.
    """

    def __init__(
        self, problem: str, *, where: str | Path | None = None, fix: str | None = None
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.where = None if where is None else str(where)
        self.fix = fix

    def lines(self) -> list[str]:
        """The message, one line per problem."""
        where = f"{self.where}: " if self.where else ""
        fix = f" ({self.fix})" if self.fix else ""
        return [" ".join(f"{where}{self.problem}{fix}".split())]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default reduction of an exception, and errors
        # cross process boundaries in data-loader workers and test runners.
        return _rebuild, (type(self), self.problem, self.where, self.fix)


class UserErrors(UserError):
    """Several mistakes found at once; each keeps its own line."""

    def __init__(self, errors: Sequence[UserError]) -> None:
        super().__init__(f"{len(errors)} problems")
        self.errors = tuple(errors)

    def lines(self) -> list[str]:
        """The messages of all problems, one line each, in the order found."""
        return [line for error in self.errors for line in error.lines()]

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.errors,)


def _rebuild(kind: type[UserError], problem: str, where: str | None, fix: str | None) -> UserError:
    return kind(problem, where=where, fix=fix)

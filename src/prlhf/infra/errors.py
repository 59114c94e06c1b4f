"""Errors that the user, not the programmer, has to mend, and how the command line shows them."""

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

EXIT_USER = 2
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141
EXIT_TERMINATED = 143


# Control characters, which a terminal would obey, and lone surrogates, which have no bytes.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text: str) -> str:
    """A text in one line, with what no terminal or file should be sent written as its escape."""
    line = " ".join(text.split())
    return _UNPRINTABLE.sub(lambda found: repr(found.group())[1:-1], line)


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
        return [printable(f"{where}{self.problem}{fix}")]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def __reduce__(self) -> tuple[object, ...]:
        # By default pickling an exception loses its keyword-only arguments.
        return partial(type(self), self.problem, where=self.where, fix=self.fix), ()


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


@contextmanager
def loading(problem: str, *, where: str | Path, fix: str | None = None) -> Iterator[None]:
    """Turn what `from_pretrained` raises for missing, broken or unsuitable files into one error.

    Raises:
        UserError: `problem`, followed by the first line of the original message.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Readers of damaged files raise whatever their code runs into.
        if _is_out_of_memory(error):
            raise
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{problem}: {first_line}", where=where, fix=fix) from error


# -- other exceptions ----------------------------------------------------------------------------

_FIXES = {
    errno.ENOSPC: "free some space, then run again",
    errno.EDQUOT: "free some space, then run again",
    errno.EFBIG: "raise the limit, see `ulimit -f`",
    errno.EROFS: "make it writable, or work elsewhere",
    errno.EEXIST: "move it away",
    errno.ENOTDIR: "move the file away that stands for a directory",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.ENOENT: "`dvc repro` makes what is missing",
}
_LOWER_MEMORY = "lower optimizer.micro_batch_size, generate.batch_size or tokens in params.yaml"
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
# Libraries written in Rust report the system's error in their text only.
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")


def user_lines(error: Exception) -> list[str]:
    """What to tell the user instead of a traceback; nothing if the traceback is what helps.

    Covers `UserError`, errors of the operating system (also under other exceptions, if they are
    about the disk), and running out of memory.
    """
    if isinstance(error, UserError):
        return error.lines()
    if _is_out_of_memory(error):
        return [str(UserError("out of memory", fix=_LOWER_MEMORY))]
    if isinstance(error, OSError) and error.errno and error.filename is not None:
        return [_system_line(error.errno, error.filename)]
    for link in chain(error):
        number = disk_errno(link)
        if number is not None:
            return [_system_line(number, getattr(link, "filename", None))]
    return []


def _is_out_of_memory(error: Exception) -> bool:
    """Of the machine, for which torch has but a message, or of the accelerator."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and the errors that caused it, the latest first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def disk_errno(error: BaseException) -> int | None:
    """The system's number of an error of the disk; None for any other error."""
    if isinstance(error, OSError):
        number = error.errno
    else:
        found = _RUST_ERROR.search(str(error))
        number = int(found.group(1)) if found else None
    return number if number in _DISK_ERRORS else None


def _system_line(number: int, filename: object) -> str:
    where = os.fsdecode(filename) if isinstance(filename, str | bytes) else None
    return str(UserError(os.strerror(number).lower(), where=where, fix=_FIXES.get(number)))

"""Which exceptions are the user's or the machine's, not the program's, and how to say so."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from prlhf.errors import UserError

EXIT_USER = 2
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141
EXIT_TERMINATED = 143

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
_LOWER_MEMORY = "lower train.micro_batch_size, generate.batch_size or tokens in params.yaml"
# Errors of the machine, whatever a library raised on top of them.
_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
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
        number = link.errno if isinstance(link, OSError) else _rust_errno(link)
        if number in _MACHINE:
            return [_system_line(number, getattr(link, "filename", None))]
    return []


def _is_out_of_memory(error: Exception) -> bool:
    # torch's own class for the accelerator's memory, a message for the machine's.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those behind it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _rust_errno(error: BaseException) -> int | None:
    found = _RUST_ERROR.search(str(error))
    return int(found.group(1)) if found else None


def _system_line(number: int, filename: object) -> str:
    problem = os.strerror(number).lower()
    where = os.fsdecode(filename) if isinstance(filename, str | bytes) else None
    return str(UserError(problem, where=where, fix=_FIXES.get(number)))

"""Results that later runs use again: files by key, checked, the least recently used dropped.

A cache lies outside DVC's outputs, which DVC deletes before a stage runs. It only saves time:
whether something is in it changes no result.
"""

import hashlib
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from prlhf.infra.progress import say

DIGEST: Final = 16
"""Bytes of the hash in front of each entry."""

PARTIAL: Final = ".partial"

WRITTEN: Final = 60.0
"""Seconds after which an entry has been written, or never will be."""


class ResultCache:
    """Entries of some bytes each, one file an entry.

    Several processes may use a cache at the same time, and be killed at any moment: an entry
    appears whole, and one that is damaged, by a crash of the machine for example, is as good as
    absent.

    Args:
        root: the directory; made when something is put in.
        limit: bytes that `trim` leaves.
        of: what all entries depend on; others are not found.
    """

    def __init__(self, root: Path, limit: int, of: str) -> None:
        self.root = root
        self.limit = limit
        self.of = of

    def path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}-{self.of}"

    def __contains__(self, key: str) -> bool:
        """Whether there is an entry; it may turn out to be damaged."""
        return self.path(key).is_file()

    def get(self, key: str) -> bytes | None:
        """The entry; None if there is none, or if it is damaged."""
        path = self.path(key)
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        digest, entry = content[:DIGEST], content[DIGEST:]
        if digest != _digest(entry):
            say(f"{path} is damaged: what it held is computed anew")
            _remove(path)
            return None
        return entry

    def put(self, key: str, entry: bytes) -> None:
        """Keep an entry. A disk that is full or read-only keeps nothing, which is no error."""
        path = self.path(key)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not flushed to the disk: the digest tells whether it got there.
            partial.write_bytes(_digest(entry) + entry)
            partial.replace(path)
        except OSError:
            _remove(partial)

    def trim(self) -> None:
        """Drop what killed processes left, and the least recently used entries above the limit."""
        found = []
        for path in self.root.glob("*/*"):
            with suppress(OSError):
                status = path.stat()
                if path.suffix == PARTIAL and time.time() - status.st_mtime > WRITTEN:
                    path.unlink()
                else:
                    found.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.limit:
                return
            _remove(path)
            total -= size


def _digest(entry: bytes) -> bytes:
    return hashlib.blake2b(entry, digest_size=DIGEST).digest()


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()

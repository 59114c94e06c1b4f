"""Copies of the project that runs take place in, beside the directory that the user works in."""

from __future__ import annotations

import subprocess
from pathlib import Path

from configobj import ConfigObj

from prlhf.errors import UserError

LINKS = "reflink,hardlink,symlink,copy"
"""How DVC brings files from the cache, the cheapest way first."""


def git(directory: Path, *arguments: str) -> str:
    """What a Git command prints.

    Raises:
        UserError: It failed.
    """
    result = subprocess.run(
        ["git", *arguments],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["failed"]
        raise UserError(f"git {arguments[0]}: {lines[-1]}", where=directory)
    return result.stdout


def configure(root: Path, copy: Path, cache: Path) -> None:
    """Give a copy the project's own DVC settings, its cache, and links to it instead of copies.

    Args:
        root: the project.
        copy: the project's directory in the copy.
        cache: the project's DVC cache.
    """
    config = ConfigObj(str(root / ".dvc/config.local"), encoding="utf-8")
    config.merge({"cache": {"dir": str(cache), "type": LINKS}})
    config.filename = str(copy / ".dvc/config.local")
    config.write()

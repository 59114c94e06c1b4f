"""A disk that is full, or that nothing can be written to."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

import pytest
from e2e_project import RESULTS, Project

pytestmark = pytest.mark.e2e

# $1 becomes a file system of its own, with what is in it and so many kB free; $3 keeps what it
# holds in the end. Nothing of it is left when the command, the rest of the arguments, is over.
FULL = """
set -e
directory=$1 free=$2 after=$3
shift 3
mkdir -p "$directory"
cp -a "$directory" "$after"
mount -t tmpfs -o size=4m tmpfs "$directory"
cp -a "$after/." "$directory"
head -c 4m /dev/zero > "$directory/filler" 2> /dev/null || true
truncate -s "-${free}k" "$directory/filler"
status=0
"$@" || status=$?
rm -r "$directory/filler" "$after"
cp -a "$directory" "$after"
exit $status
"""
READ_ONLY = """
set -e
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
shift
exec "$@"
"""


@functools.cache
def mounting() -> list[str]:
    """The command that runs another one with mounts of its own; none where that is forbidden."""
    for command in (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]):
        test = [*command, "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
        try:
            if subprocess.run(test, capture_output=True, check=False).returncode == 0:
                return command
        except FileNotFoundError:
            break
    return []


def mounted(script: str, *arguments: str) -> list[str]:
    if not mounting():
        pytest.skip("this machine lets nobody mount anything (unshare --mount)")
    return [*mounting(), "sh", "-c", script, "sh", *arguments]


def unfinished(directory: Path) -> list[Path]:
    return list(directory.rglob(".*.partial*"))


def test_a_full_disk_while_writing_a_table(own_data: Project):
    earlier = own_data.digests("data")
    result = own_data.run(*mounted(FULL, "data", "8", "after", "prlhf", "ingest"), status=2)
    [line] = result.errors
    assert result.err == f"ingest: started\n{line}\n"
    assert line.startswith("error: data/ingested/")
    assert line.endswith(": no space left on device (free some space, then run again)")
    (own_data / "data").rename(own_data / "before")
    (own_data / "after").rename(own_data / "data")
    assert own_data.digests("data") == earlier
    assert unfinished(own_data / "data") == []


@pytest.mark.parametrize(
    ("directory", "free", "where"),
    [
        # Too little for the adapter; enough for it, but not for the state of the optimiser.
        (".cache", 8, ".cache/checkpoints/pdpo-"),
        (".cache", 40, ".cache/checkpoints/pdpo-"),
        ("models", 8, "models/pdpo"),
    ],
)
def test_a_full_disk_while_training(project: Project, directory, free, where):
    earlier = project.digests(*RESULTS)
    command = mounted(FULL, directory, str(free), "after", "prlhf", "train", "--method", "pdpo")
    result = project.run(*command, status=2)
    assert len(result.errors) == 1
    assert result.errors[0].startswith(f"error: {where}")
    assert result.errors[0].endswith(": no space left on device (free some space, then run again)")
    assert unfinished(project / "after") == []
    if directory == "models":
        (project / "models").rename(project / "before")
        (project / "after").rename(project / "models")
    assert project.digests(*RESULTS) == earlier


def test_a_directory_that_nothing_can_be_written_to(own_data: Project):
    earlier = own_data.digests("data")
    if os.geteuid() == 0:
        result = own_data.run(*mounted(READ_ONLY, "data", "prlhf", "ingest"), status=2)
        line = "error: data/ingested: read-only file system (make it writable, or work elsewhere)"
    else:
        (own_data / "data").chmod(0o555)
        try:
            result = own_data.run("prlhf", "ingest", status=2)
        finally:
            (own_data / "data").chmod(0o755)
        line = "error: data/ingested: permission denied (check its permissions)"
    assert result.err == f"ingest: started\n{line}\n"
    assert own_data.digests("data") == earlier


def test_a_file_where_a_directory_has_to_be(own_data: Project):
    (own_data / "models").write_text("mine")
    own_data.set({"model.name": "nowhere"})
    result = own_data.run("prlhf", "base-model", status=2)
    assert result.errors == ["error: models: file exists (move it away)"]
    assert (own_data / "models").read_text() == "mine"

"""DVC and Git as commands, and the copies of a project that runs take place in."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from configobj import ConfigObj

from prlhf.infra.errors import UserError

DVC = (sys.executable, "-m", "dvc", "--wait-for-lock")  # of this environment; waits for others
LINKS = "reflink,hardlink,symlink,copy"  # how DVC brings files from the cache, cheapest first
_DVCS_OWN = re.compile(r"^(ERROR: |WARNING: |> |Running stage |Updating lock file )")


def environment(project: Path | None = None) -> dict[str, str]:
    """The environment for commands: this one, its programs first on the path, output unbuffered.

    Args:
        project: A directory whose own copy of the package is to be used, if it has one.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    found = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}
    # Left over from a stage or an experiment that this process may have been started by.
    for name in ("DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        found.pop(name, None)
    if project is not None and (project / "src").is_dir():
        others = os.environ.get("PYTHONPATH")
        found["PYTHONPATH"] = os.pathsep.join([str(project / "src"), *([others] if others else [])])
    return found


def failure(lines: Sequence[str], stage: str | None = None) -> str:
    """Why DVC failed, in one line: the stage's own error, or else DVC's and the last line printed.

    Args:
        lines: All that was printed.
        stage: The stage's name, to put before a message that does not say where the fault is.
    """
    own = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if own:
        return own[0] + (f" (and {len(own) - 1} more, see the log)" if len(own) > 1 else "")
    dvcs = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    last = [line for line in lines if line.strip() and not _DVCS_OWN.match(line)][-1:]
    where = [] if stage is None else [stage]
    return ": ".join([*where, *([*dvcs[:1], *last] or ["dvc failed and said nothing"])])


def git(directory: Path, *arguments: str) -> str:
    """The output of a Git command.

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


def repository(root: Path) -> tuple[Path, str]:
    """The top directory of a project's Git repository, and the commit of HEAD.

    Raises:
        UserError: There is no repository, or no commit.
    """
    top = Path(git(root, "rev-parse", "--show-toplevel").strip())
    return top, git(root, "rev-parse", "HEAD").strip()


def check_out(top: Path, copy: Path, commit: str) -> None:
    """Make a copy, a clone of a repository, hold exactly the files of a commit.

    Ignored files stay; what else an earlier run left is removed. A copy that Git can no longer use
    (a killed Git leaves lock files) is replaced by a new clone.
    """
    for usable in [True, False] if (copy / ".git").is_dir() else [False]:
        if not usable:
            shutil.rmtree(copy, ignore_errors=True)
            git(top, "clone", "--quiet", "--shared", "--no-checkout", str(top), str(copy))
        try:
            git(copy, "checkout", "--quiet", "--force", "--detach", commit)
            git(copy, "clean", "--quiet", "-d", "--force")
            return
        except UserError:
            if not usable:
                raise


def configure(root: Path, copy: Path, cache: Path) -> None:
    """Give the project's directory in a copy its local DVC settings and its cache, with links."""
    config = ConfigObj(str(root / ".dvc/config.local"), encoding="utf-8")
    config.merge({"cache": {"dir": str(cache), "type": LINKS}})
    config.filename = str(copy / ".dvc/config.local")
    config.write()

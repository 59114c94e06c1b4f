"""DVC and Git as commands, and the copies of a project that runs take place in."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from configobj import ConfigObj

from prlhf.infra.errors import UserError

DVC = (sys.executable, "-m", "dvc", "--wait-for-lock")  # of this environment; waits for others
LINKS = "reflink,hardlink,symlink,copy"  # how DVC brings files from the cache, cheapest first
_DVCS_OWN = re.compile(r"^(ERROR: |WARNING: |> |Running stage |Updating lock file )")
_EXITED = re.compile(r"failed to run: .*, exited with (-?\d+)$")
# What Git says, and what that means for a project.
_NO_REPOSITORY = ("not a git repository", "the project is not under Git", "run this in a clone")
_NO_COMMIT = ("does not have any commits yet", "there is no commit yet", None)


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


def failure(lines: Sequence[str], stage: str | None = None, status: int | None = None) -> str:
    """Why DVC failed, in one line: the stage's own error, or else DVC's and the last line printed.

    Args:
        lines: All that was printed.
        stage: The stage's name, to put before a message that does not say where the fault is.
        status: DVC's exit status, which is all there is to tell if DVC itself was killed.
    """
    own = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if own:
        return own[0] + (f" (and {len(own) - 1} more, see the log)" if len(own) > 1 else "")
    dvcs = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    exited = [int(found[1]) for line in dvcs if (found := _EXITED.search(line))]
    if exited and _signal(exited[0]) is not None:
        dvcs = [ending(exited[0])]  # the stage could not say anything
    elif not dvcs and status is not None and _signal(status) is not None:
        dvcs = [f"dvc {ending(status)}"]
    last = [line for line in lines if line.strip() and not _DVCS_OWN.match(line)][-1:]
    where = [] if stage is None else [stage]
    return ": ".join([*where, *([*dvcs[:1], *last] or ["dvc failed and said nothing"])])


def ending(status: int) -> str:
    """How a process ended, by its exit status as `subprocess` (-9) or a shell (137) has it."""
    number = _signal(status)
    if number is None:
        return f"exited with {status}"
    short = ", which is what the system does when memory runs out" if number == 9 else ""
    return f"was ended by {signal.Signals(number).name}{short}"


def _signal(status: int) -> int | None:
    """The signal that ended a process."""
    number = -status if status < 0 else status - 128
    return number if number in set(signal.Signals) else None


def git(directory: Path, *arguments: str) -> str:
    """The output of a Git command; bytes that are no UTF-8, as in file names, as surrogates.

    Raises:
        UserError: It failed, for the reason that Git gives, or there is no Git.
    """
    try:
        result = subprocess.run(
            ["git", *arguments],
            cwd=directory,
            env=os.environ | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
        )
    except FileNotFoundError as error:
        if shutil.which("git") is not None:
            raise
        raise UserError("Git is not installed", where=directory, fix="install it") from error
    if result.returncode:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()] or ["failed"]
        # Hints come after the reason. Of a repository of another user's, the last one is a command.
        reasons = [line for line in lines if line.startswith(("fatal: ", "error: "))] or lines[-1:]
        trust = [line for line in lines if line.startswith("git config ")]
        raise UserError(
            f"git {arguments[0]}: {re.sub('^(fatal|error): ', '', reasons[-1])}",
            where=directory,
            fix=f"if you trust its owner: `{trust[0]}`" if trust else None,
        )
    return result.stdout


def repository(root: Path) -> tuple[Path, str]:
    """The top directory of a project's Git repository, and the commit of HEAD.

    Raises:
        UserError: There is no repository, no commit, or Git does not want to read it.
    """
    try:
        top = git(root, "rev-parse", "--show-toplevel").removesuffix("\n")
        return Path(top), git(root, "log", "-1", "--no-show-signature", "--format=%H").strip()
    except UserError as error:
        for words, problem, fix in (_NO_REPOSITORY, _NO_COMMIT):
            if words in error.problem:
                raise UserError(problem, where=root, fix=fix) from error
        raise


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
    config = ConfigObj(str(root / ".dvc/config.local"), encoding="utf-8", interpolation=False)
    # Relative, as DVC takes `%(x)s` in a path, which the project's may hold, for another setting.
    place = os.path.relpath(cache, copy / ".dvc")
    config.merge({"cache": {"dir": place, "type": LINKS}})
    config.filename = str(copy / ".dvc/config.local")
    config.write()

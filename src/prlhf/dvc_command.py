"""DVC as a command of this environment: how it is started, and why it failed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

DVC = (sys.executable, "-m", "dvc", "--wait-for-lock")
"""DVC of this environment; it waits while another DVC holds the repository's lock."""

_DVCS_OWN = re.compile(r"^(ERROR: |WARNING: |> |Running stage |Updating lock file )")


def environment(project: Path | None = None) -> dict[str, str]:
    """What commands run with: this environment, its programs first, output as it comes.

    Args:
        project: A directory whose own copy of the package is to be used, if it has one.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    found = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}
    # Not those of a stage or an experiment that this may have been started from.
    for name in ("DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        found.pop(name, None)
    if project is not None and (project / "src").is_dir():
        others = os.environ.get("PYTHONPATH")
        found["PYTHONPATH"] = os.pathsep.join([str(project / "src"), *([others] if others else [])])
    return found


def failure(lines: Sequence[str], stage: str | None = None) -> str:
    """One line on why DVC failed: what its stage said, or else what DVC did, and the last words.

    Args:
        lines: All that it printed.
        stage: The stage, for what does not name it. A stage's own line says where the fault is.
    """
    own = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if own:
        return own[0] + (f" (and {len(own) - 1} more, see the log)" if len(own) > 1 else "")
    dvcs = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    last = [line for line in lines if line.strip() and not _DVCS_OWN.match(line)][-1:]
    where = [] if stage is None else [stage]
    return ": ".join([*where, *([*dvcs[:1], *last] or ["dvc failed and said nothing"])])

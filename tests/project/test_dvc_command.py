"""How DVC is started, and how its failures are told."""

import os
import sys
from pathlib import Path

import pytest

from prlhf.project.dvc import environment, failure

DVC = "ERROR: failed to reproduce 'a': failed to run: x, exited with 2"


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (["Running stage 'a':", "error: f:3: bad (mend it)", DVC], "f:3: bad (mend it)"),
        (["error: one", "error: two", "error: three", DVC], "one (and 2 more, see the log)"),
        (["Running stage 'a':", "> x", "Killed", "ERROR: failed"], "a: failed: Killed"),
        (
            ["> x", "ValueError: boom", DVC],
            "a: failed to reproduce 'a': failed to run: x, exited with 2: ValueError: boom",
        ),
        ([], "a: dvc failed and said nothing"),
    ],
)
def test_a_failure_is_the_stages_own_line_or_its_last(lines, line):
    assert failure(lines, "a") == line
    assert failure(lines) == line.removeprefix("a: ")


def test_commands_find_this_environment_and_the_code_of_a_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/elsewhere")
    monkeypatch.setenv("PYTHONPATH", "/others")
    for name in ("DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.setenv(name, "of another run")
    found = environment(tmp_path)
    assert found["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}/elsewhere"
    assert found["PYTHONPATH"] == "/others"
    assert not any(name.startswith("DVC_") and "of another" in found[name] for name in found)
    (tmp_path / "src").mkdir()
    assert environment(tmp_path)["PYTHONPATH"] == f"{tmp_path / 'src'}{os.pathsep}/others"
    monkeypatch.delenv("PYTHONPATH")
    assert environment(tmp_path)["PYTHONPATH"] == str(tmp_path / "src")

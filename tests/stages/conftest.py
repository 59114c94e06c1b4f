from __future__ import annotations

from pathlib import Path

import pytest

from training_project import LIKED, USERS, lay_out


@pytest.fixture
def project(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, in which the stage `train` can run."""
    monkeypatch.setenv("PRLHF_DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path, tiny_path, USERS, weights=LIKED)
    return tmp_path

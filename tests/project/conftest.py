"""The little project, run once for all tests here, and clones of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from little_project import FILES, Little, run


@pytest.fixture(scope="session")
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Git and DVC know nothing of this machine's user."""
    state = tmp_path_factory.mktemp("state")
    kinds = {f"DVC_{kind}_DIR": kind for kind in ("SITE_CACHE", "GLOBAL_CONFIG", "SYSTEM_CONFIG")}
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("GIT_")]:
            patch.delenv(name)
        for name, kind in kinds.items():
            patch.setenv(name, str(state / kind))
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        patch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path_factory.getbasetemp().parent))
        yield


@pytest.fixture(scope="session")
def ran(isolated: None, tmp_path_factory: pytest.TempPathFactory) -> Little:
    """The little project after `dvc repro`, committed; read only."""
    little = Little(tmp_path_factory.mktemp("little") / "project")
    for name, text in FILES.items():
        little.write(name, text)
    little.git("init", "--quiet", "--initial-branch=main")
    little.dvc("init", "--quiet")
    little.dvc("config", "core.analytics", "false")
    little.dvc("add", "--quiet", "labels.txt")
    little.dvc("repro", "--quiet")
    little.commit()
    return little


@pytest.fixture
def little(ran: Little, tmp_path: Path) -> Little:
    """A fresh clone of it: no cache, and of the results only what Git has."""
    run(tmp_path, "git", "clone", "--quiet", str(ran.path), "project")
    clone = Little(tmp_path / "project")
    assert not (clone / "data.csv").exists()
    assert not (clone / ".dvc/cache").exists()
    return clone

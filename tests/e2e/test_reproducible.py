"""The same twice: from scratch, and out of DVC's cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from e2e_data import clone
from e2e_project import RESULTS, STAGES, Project

pytestmark = pytest.mark.e2e


def test_a_clone_without_a_cache_runs_everything_to_the_same_result(
    finished: Project, tmp_path: Path
):
    other = clone(tmp_path / "elsewhere")
    shutil.copy(finished / "dvc.lock", other.path)
    result = other.run("dvc", "repro")
    assert sorted(result.ran) == sorted(STAGES)
    assert other.digests(*RESULTS) == finished.digests(*RESULTS)
    assert other.locked() == finished.locked()


def test_deleted_results_come_back_from_what_dvc_kept(finished: Project, project: Project):
    for name in RESULTS:
        path = project / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert set(project.run("dvc", "repro").ran) <= project.not_kept()
    assert project.digests(*RESULTS) == finished.digests(*RESULTS)

"""The comparison on the pipeline itself: its matrices, templates and files."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from little_project import Little
from prlhf.params.loading import parse
from prlhf.project.compare import compare

ROOT = Path(__file__).resolve().parents[2]
TRAIN = {"train@dpo", "train@pdpo"}
AFTER = {"generate@dpo", "generate@pdpo", "score@dpo", "score@pdpo", "judge", "evaluate"}


@pytest.fixture
def project(isolated: None, tmp_path: Path) -> Little:
    """The repository as it is now, with one commit."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    copy = Little(tmp_path / "project")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    copy.git("init", "--quiet")
    copy.commit()
    return copy


def test_another_alpha(project):
    text = (project / "params.yaml").read_text(encoding="utf-8")
    found = re.search(r"^train:.*\n  alpha: ([\d.]+)", text, re.M)
    assert found
    value = found[1]
    project.write("params.yaml", f"{text[: found.start(1)]}0.125{text[found.end(1) :]}")
    assert parse((project / "params.yaml").read_text(encoding="utf-8")).train.alpha == 0.125
    changes = compare(path=project.path)
    [parameter] = changes.parameters
    assert parameter.key == "train.alpha"
    assert parameter.values == {"old": float(value), "new": 0.125}
    assert set(parameter.stages) == TRAIN
    direct = {stage.name for stage in changes.stages if stage.reasons}
    assert direct == TRAIN | {"report"}
    assert {stage.name for stage in changes.stages} - direct == AFTER
    gpu = {stage.name for stage in changes.stages if stage.gpu}
    assert gpu == (TRAIN | AFTER) - {"judge", "evaluate"}
    assert not any(warning.kind == "params" for warning in changes.warnings)


def test_a_value_out_of_range_and_another_module(project):
    text = (project / "params.yaml").read_text(encoding="utf-8")
    project.write("params.yaml", text.replace("confidence: 0.95", "confidence: 95"))
    project.write("src/prlhf/metrics/tables.py", "# other\n")
    changes = compare(path=project.path)
    [faults] = [each for each in changes.warnings if each.kind == "params"]
    [line] = faults.about
    assert "evaluate.confidence: must be" in line
    [file] = changes.files
    assert (file.path, file.kind, file.change) == ("src/prlhf/metrics", "code", "changed")
    assert file.files == ("src/prlhf/metrics/tables.py",)
    assert file.stages == ("evaluate",)
    assert [stage.name for stage in changes.stages] == ["evaluate", "report"]

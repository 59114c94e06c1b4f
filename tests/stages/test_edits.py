"""What an edit of the code makes stale: the table that the packages were cut for.

DVC says so itself, in a copy of the repository that it takes for finished.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from source_tree import ROOT

REFERENCE = {"reference"}
PRETRAIN = {"pretrain_user_model"}
TRAIN = {"train@dpo", "train@pdpo"}
GENERATE = {"generate@base", "generate@dpo", "generate@pdpo"}
SCORE = {"score@base", "score@dpo", "score@pdpo"}
REWARDS = {"train_reward_model@pdpo", "score_rewards@pdpo"}

# What is stale at once; what follows from changed results shows only as they change.
EDITS = {
    "a loss": ("training/losses.py", PRETRAIN | TRAIN | {"train_reward_model@pdpo"}),
    # Directories are coarser than modules: pretraining does not use this one.
    "fine-tuning": ("training/finetune.py", PRETRAIN | TRAIN | {"train_reward_model@pdpo"}),
    "generation": ("generation.py", GENERATE),
    "scoring": ("scoring.py", SCORE),
    "a judge": ("judging/judges.py", {"judge"}),
    "the prompt of the language-model judge": ("judging/llm_judge.py", {"judge"}),
    "the intervals": ("metrics/intervals.py", {"evaluate"}),
    "the report": ("report/page.py", {"report"}),
    "the style of the report": ("report/templates/report.css", {"report"}),
    "an error message": ("infra/errors.py", set()),
    "the description of a parameter": ("params/training.py", set()),
    "a command": ("cli.py", set()),
    "how the base model is fetched": ("hub.py", {"base_model"}),
    "a reader of files": ("ingest/columnar.py", {"ingest"}),
    "a check of the data": ("validation/checks.py", {"validate"}),
    "a user model": (
        "models/user_model.py",
        REFERENCE | PRETRAIN | TRAIN | GENERATE | SCORE | REWARDS,
    ),
}
LATE_ROOMS = ("infra", "params", "generation", "scoring", "judging", "metrics", "report", "project")
COSTLY = REFERENCE | TRAIN
"""No edit of the rooms above repeats these."""


class Finished:
    """A copy of a repository's code whose stages are all up to date, with results made up."""

    def __init__(self, source: Path, path: Path) -> None:
        from dvc.repo import Repo

        self.code = path / "src" / "prlhf"
        shutil.copytree(
            source / "src", path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
        for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
            shutil.copy(source / name, path)
        yaml = YAML()
        params = yaml.load(path / "params.yaml")
        params["reward_models"] = ["pdpo"]
        yaml.dump(params, path / "params.yaml")
        self.repo = Repo.init(str(path), no_scm=True)
        outs = [Path(out.fs_path) for stage in self.repo.index.stages for out in stage.outs]
        given = [path / params["data"]["path"], path / params["generate"]["prompts_path"]]
        given += [path / "data/reference/set_aside.parquet"]  # a dependency in an output
        for target in [*outs, *given]:
            file = target if target.suffix else target / "prlhf_source.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("made up\n")
        with contextlib.chdir(path):  # DVC's cache of runs is of the current directory
            self.repo.commit(force=True)

    def stale(self) -> set[str]:
        """The stages that DVC would run because something they depend on has changed."""
        self.repo._reset()
        with contextlib.chdir(self.repo.root_dir):  # names are relative to it
            return set(self.repo.status())

    def after_editing(self, name: str) -> set[str]:
        """What is stale when a file of the package has another line at its end."""
        path = self.code / name
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        try:
            return self.stale()
        finally:
            path.write_bytes(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    path = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("SITE_CACHE", "GLOBAL_CONFIG", "SYSTEM_CONFIG"):
            patch.setenv(f"DVC_{kind}_DIR", str(path / "state" / kind))
        project = Finished(ROOT, path / "project")
        yield project
        project.repo.close()


def test_nothing_is_stale_before_an_edit_nor_through_caches(finished: Finished):
    assert finished.stale() == set()
    for package in {path.parent for path in finished.code.rglob("*.py")}:
        (package / "__pycache__").mkdir()
        (package / "__pycache__" / "x.cpython-311.pyc").write_bytes(b"x")
    assert finished.stale() == set()


def test_an_edit_makes_stale_what_can_depend_on_it(finished: Finished):
    found = {edit: finished.after_editing(name) for edit, (name, _) in EDITS.items()}
    assert found == {edit: stages for edit, (_, stages) in EDITS.items()}


def test_no_edit_of_what_comes_later_repeats_what_is_costly(finished: Finished):
    names = [
        path.relative_to(finished.code).as_posix()
        for path in finished.code.rglob("*.py")
        if path.relative_to(finished.code).parts[0].removesuffix(".py") in LATE_ROOMS
    ]
    before = {name: (finished.code / name).read_bytes() for name in names}
    for name, text in before.items():
        (finished.code / name).write_bytes(text + b"\n")
    try:
        assert finished.stale() & COSTLY == set()
    finally:
        for name, text in before.items():
            (finished.code / name).write_bytes(text)

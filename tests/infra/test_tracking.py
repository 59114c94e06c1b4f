"""Trackers get what a run logs; none is the default, and a missing one is said."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from transformers import TrainerCallback

from personal import personalise
from preferences import sections, some_pairs
from prlhf.infra import tracking
from prlhf.infra.errors import UserError
from prlhf.infra.io import CHECKPOINTS
from prlhf.models.base import BaseModel
from prlhf.training.finetune import fit
from prlhf.training.trainer import PDPOTrainer

PAIRS = {"train": some_pairs(8), "validation": some_pairs(2, seed=1)}


class Recorder(TrainerCallback):
    """A tracker that keeps what it is given."""

    def __init__(self, directory: Path, project: str, run: str) -> None:
        self.about = directory.as_posix(), project, run
        self.logged: list[dict[str, float]] = []
        self.ended = False

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        self.logged.append(dict(logs))

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.ended = True


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Recorder]:
    """Those that were started: a stand-in for tensorboard, which counts as installed."""
    found: list[Recorder] = []

    def start(directory: Path, project: str, run: str) -> list[TrainerCallback]:
        found.append(Recorder(directory, project, run))
        return [found[-1]]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(tracking.TRACKERS, "tensorboard", start)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "tensorboard" or None)
    return found


def run(base: BaseModel, checkpoints: Path) -> None:
    settings = sections(batch_size=2, micro_batch_size=2, eval_every=0.5)
    options = {"checkpoints": checkpoints, "seed": 5, "label": "test"}
    fit(PDPOTrainer, personalise(base), *settings, PAIRS, **options)


def test_a_run_reports_its_curves(tiny_base: BaseModel, recorders: list[Recorder]) -> None:
    with tracking.reporting_to(["tensorboard"], "likes"):
        run(tiny_base, CHECKPOINTS / "pdpo-0123")
    [recorder] = recorders
    assert recorder.about == (".cache/trackers/tensorboard", "likes", "pdpo-0123")
    assert Path(recorder.about[0]).is_dir()
    assert recorder.ended
    names = {name for logs in recorder.logged for name in logs}
    assert {"loss", "accuracy_user", "margin_generic", "learning_rate", "eval_loss"} <= names


def test_none_is_the_default_and_what_comes_after(
    tiny_base: BaseModel, recorders: list[Recorder], tmp_path: Path
) -> None:
    with tracking.reporting_to(["tensorboard"], "likes"):
        pass
    run(tiny_base, tmp_path)
    assert recorders == []
    assert not tracking.LOGS.exists()


def test_a_tracker_that_is_not_installed(
    tiny_base: BaseModel, recorders: list[Recorder], tmp_path: Path
) -> None:
    with (
        tracking.reporting_to(["tensorboard", "wandb"], "likes"),
        pytest.raises(UserError) as caught,
    ):
        run(tiny_base, tmp_path / "one")
    assert str(caught.value) == (
        "params.yaml: track.report_to: wandb is not installed (pip install wandb, or take it out)"
    )
    # Before anything is started.
    assert recorders == []


def test_every_tracker_of_the_parameters_is_known() -> None:
    from typing import get_args

    from prlhf.params import TrackParams

    [names] = get_args(TrackParams.model_fields["report_to"].annotation)
    assert set(get_args(names)) == set(tracking.TRACKERS)


def test_runs_have_names_of_their_own(tmp_path: Path) -> None:
    assert tracking.run_name(CHECKPOINTS / "groups-01" / "group_0") == "groups-01/group_0"
    assert tracking.run_name(tmp_path / "somewhere") == "somewhere"

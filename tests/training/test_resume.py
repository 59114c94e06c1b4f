"""Killed and resumed runs end where uninterrupted ones do; no run resumes another's work."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

import prlhf.training.finetune as finetune_module
from personal import personalise
from preferences import sections, some_pairs
from prlhf.infra.io import discard, run_key
from prlhf.models.base import BaseModel
from prlhf.models.personalized import PersonalizedLM
from prlhf.training.callbacks import COMPLETE, ShowProgress, last_complete
from prlhf.training.finetune import fit
from prlhf.training.trainer import PDPOTrainer

PAIRS = some_pairs(10, weights=True)
# 5 steps an epoch; validations, checkpoints and logs (every 5 steps) fall on different steps.
SETTINGS: dict[str, Any] = {
    "batch_size": 2,
    "micro_batch_size": 1,
    "epochs": 2.0,
    "warmup_ratio": 0.2,
    "checkpoint_every": 3,
    "eval_every": 4,
    "nll_coef": 0.5,
}


def run(lm: PersonalizedLM, checkpoints: Path, **changes: Any) -> pd.DataFrame:
    return fit(
        PDPOTrainer,
        lm,
        *sections(**{**SETTINGS, **changes}),
        {"train": PAIRS, "validation": PAIRS[:3]},
        checkpoints=checkpoints,
        seed=5,
        label="test",
    )


def trained(lm: PersonalizedLM) -> dict[str, Tensor]:
    return {
        name: p.detach().clone()
        for name, p in lm.named_parameters()
        if "lora_" in name or name.startswith("user_model.")
    }


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C once, at the end of a step."""

    class Interrupting(ShowProgress):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step == step:
                raise KeyboardInterrupt

    monkeypatch.setattr(finetune_module, "ShowProgress", Interrupting)


@pytest.mark.parametrize("kind", ["individual", "cluster", "uniform"])
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(
    tiny_base: BaseModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    start = personalise(tiny_base, kind, dropout=0.2)
    whole = copy.deepcopy(start)
    expected = run(whole, tmp_path / "whole")

    with monkeypatch.context() as patch:
        interrupt(patch, step=8)
        with pytest.raises(KeyboardInterrupt):
            run(copy.deepcopy(start), tmp_path / "cut")
    assert "step 6 is kept; the next run goes on from there" in capsys.readouterr().err
    resumed = copy.deepcopy(start)
    torch.manual_seed(99)
    got = run(resumed, tmp_path / "cut")
    assert "resuming from step 6" in capsys.readouterr().err

    for name, weight in trained(whole).items():
        assert torch.equal(trained(resumed)[name], weight), name
        assert not torch.equal(trained(start)[name], weight), name
    # Nor do the curves show that anything happened.
    pd.testing.assert_frame_equal(got, expected)


def test_resuming_a_run_that_had_just_ended(tiny_base: BaseModel, tmp_path: Path) -> None:
    """Killed after the last checkpoint, before the stage wrote its result."""
    start = personalise(tiny_base)
    first = copy.deepcopy(start)
    expected = run(first, tmp_path)
    again = copy.deepcopy(start)
    got = run(again, tmp_path)
    for name, weight in trained(first).items():
        assert torch.equal(trained(again)[name], weight), name
    pd.testing.assert_frame_equal(got, expected)


def test_a_checkpoint_without_its_mark_is_not_used(
    tiny_base: BaseModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = personalise(tiny_base)
    whole = copy.deepcopy(start)
    run(whole, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt(patch, step=8)
        with pytest.raises(KeyboardInterrupt):
            run(copy.deepcopy(start), tmp_path / "cut")
    half = tmp_path / "cut" / "checkpoint-6"
    (half / COMPLETE).unlink()
    (half / "user_model.safetensors").write_bytes(b"half of")
    resumed = copy.deepcopy(start)
    run(resumed, tmp_path / "cut")
    assert "resuming from step 3" in capsys.readouterr().err
    for name, weight in trained(whole).items():
        assert torch.equal(trained(resumed)[name], weight), name


def test_an_interruption_before_the_first_checkpoint_says_nothing_is_kept(
    tiny_base: BaseModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupt(monkeypatch, step=2)
    with pytest.raises(KeyboardInterrupt):
        run(personalise(tiny_base), tmp_path)
    assert "kept" not in capsys.readouterr().err
    assert last_complete(tmp_path) is None


def test_checkpoints_hold_what_is_trained_and_two_are_kept(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    run(personalise(tiny_base), tmp_path)
    kept = sorted(p.name for p in tmp_path.glob("checkpoint-*"))
    assert kept == ["checkpoint-10", "checkpoint-9"]
    newest = last_complete(tmp_path)
    assert newest == tmp_path / "checkpoint-10"
    names = {p.name for p in newest.iterdir()}
    assert {"adapter_model.safetensors", "user_model.safetensors", "optimizer.pt"} <= names
    # The frozen base model (here 40 kB of weights) is not in it.
    assert not {"model.safetensors", "pytorch_model.bin"} & names
    discard(tmp_path)
    assert not tmp_path.exists()
    discard(tmp_path)


def test_last_complete(tmp_path: Path) -> None:
    assert last_complete(tmp_path / "nowhere") is None
    for step, complete in ((5, True), (10, True), (15, False)):
        path = tmp_path / f"checkpoint-{step}"
        path.mkdir()
        if complete:
            (path / COMPLETE).touch()
    (tmp_path / "checkpoint-tmp").mkdir()
    assert last_complete(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-15").exists()
    assert (tmp_path / "checkpoint-tmp").exists()


# -- the name of a run -------------------------------------------------------------------------


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    directory = tmp_path / "reference"
    (directory / "part").mkdir(parents=True)
    (directory / "logps.parquet").write_bytes(b"1")
    (directory / "part" / "features").write_bytes(b"2")
    (tmp_path / "train.parquet").write_bytes(b"3")
    return [directory, tmp_path / "train.parquet"]


SECTION = {"train": {"alpha": 0.5, "lora": {"r": 8}}, "seed": 1}


def test_the_same_run_has_the_same_name(inputs: list[Path], tmp_path: Path) -> None:
    key = run_key(SECTION, inputs)
    assert len(key) == 16
    assert set(key) <= set("0123456789abcdef")
    assert run_key(json.loads(json.dumps(SECTION)), inputs) == key
    assert run_key(dict(reversed(SECTION.items())), inputs) == key
    # Sections of the parameters stand for their values.
    _, params = sections()
    whole = {"seed": 1, "optimizer": params}
    assert run_key(whole, inputs) == run_key(whole | {"optimizer": params.model_dump()}, inputs)
    # Wherever it is, and whenever its files were written.
    moved = tmp_path / "moved"
    moved.mkdir()
    copies = []
    for path in inputs:
        target = moved / path.name
        copies.append(Path(str(target)))
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copyfile(path, target)
    assert run_key(SECTION, copies) == key


@pytest.mark.parametrize(
    "change",
    [
        lambda section: {**section, "seed": 2},
        lambda section: {**section, "train": {**section["train"], "alpha": 0.6}},
        lambda section: {**section, "more": None},
    ],
)
def test_other_settings_are_another_run(inputs: list[Path], change) -> None:
    assert run_key(change(SECTION), inputs) != run_key(SECTION, inputs)


def test_other_data_is_another_run(inputs: list[Path]) -> None:
    directory, file = inputs
    keys = [run_key(SECTION, inputs)]
    file.write_bytes(b"4")
    keys.append(run_key(SECTION, inputs))
    (directory / "part" / "features").write_bytes(b"5")
    keys.append(run_key(SECTION, inputs))
    (directory / "part" / "features").rename(directory / "part" / "other")
    keys.append(run_key(SECTION, inputs))
    (directory / "new").touch()
    keys.append(run_key(SECTION, inputs))
    assert len(set(keys)) == len(keys)


def test_other_code_is_another_run(
    inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = run_key(SECTION, inputs)
    source = tmp_path / "new_part.py"
    source.write_text("x = 1\n")
    module = ModuleType("prlhf.new_part")
    module.__file__ = str(source)
    monkeypatch.setitem(sys.modules, "prlhf.new_part", module)
    loaded = run_key(SECTION, inputs)
    source.write_text("x = 2\n")
    changed = run_key(SECTION, inputs)
    assert len({key, loaded, changed}) == 3
    # Neither messages nor the command line change a result.
    for name in ("infra.new_part", "params.new_part", "commands", "cli", "stages"):
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, "prlhf.new_part")
            patch.setitem(sys.modules, f"prlhf.{name}", module)
            assert run_key(SECTION, inputs) == key
    other = ModuleType("elsewhere")
    other.__file__ = str(source)
    monkeypatch.delitem(sys.modules, "prlhf.new_part")
    monkeypatch.setitem(sys.modules, "elsewhere", other)
    assert run_key(SECTION, inputs) == key

"""Killed and resumed runs end where uninterrupted ones do; no run resumes another's work."""

from __future__ import annotations

import copy
import json
import os
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
from killed import Clock, until_it_ends
from personal import personalise
from preferences import arguments, sections, some_pairs
from prlhf.infra import io
from prlhf.infra.io import checkpoint_directory, discard, run_key
from prlhf.infra.kept import INTERVAL, Pace
from prlhf.models.base import BaseModel
from prlhf.models.personalized import PersonalizedLM
from prlhf.training.callbacks import COMPLETE, ShowProgress, last_complete
from prlhf.training.finetune import Run, account, fit
from prlhf.training.plan import watched_pairs
from prlhf.training.trainer import VALIDATION, PDPOTrainer

PAIRS = some_pairs(10, weights=True)
WATCHED = some_pairs(6, seed=5)
# 5 steps an epoch; validations, checkpoints and logs (every 5 steps) fall on different steps.
SETTINGS: dict[str, Any] = {
    "batch_size": 2,
    "micro_batch_size": 1,
    "epochs": 2.0,
    "warmup_ratio": 0.2,
    "checkpoint_every": 0.3,
    "eval_every": 0.4,
    "nll_coef": 0.5,
}


def fitted(lm: PersonalizedLM, checkpoints: Path, pace: Pace | None = None, **changes: Any) -> Run:
    return fit(
        PDPOTrainer,
        lm,
        *sections(**{**SETTINGS, **changes}),
        {"train": PAIRS, "validation": WATCHED},
        checkpoints=checkpoints,
        seed=5,
        label="test",
        pace=pace,
    )


def run(lm: PersonalizedLM, checkpoints: Path, **changes: Any) -> pd.DataFrame:
    return fitted(lm, checkpoints, **changes).curves


def validations(curves: pd.DataFrame) -> pd.Series:
    """The loss of each validation, by step."""
    return curves[curves["split"] == "validation"].set_index("step")["loss"]


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


@pytest.mark.parametrize("epochs", [2.0, 1.4])
def test_resuming_a_run_that_had_just_ended(
    tiny_base: BaseModel, tmp_path: Path, epochs: float
) -> None:
    """Killed after the last checkpoint, before the stage wrote its result."""
    start = personalise(tiny_base)
    first = copy.deepcopy(start)
    expected = run(first, tmp_path, epochs=epochs)
    again = copy.deepcopy(start)
    got = run(again, tmp_path, epochs=epochs)
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
    # The validation at step 4 left a checkpoint, too.
    assert "resuming from step 4" in capsys.readouterr().err
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


def test_checkpoints_hold_what_is_trained_and_three_are_there(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    losses = validations(run(personalise(tiny_base), tmp_path))
    kept = {p.name for p in tmp_path.glob("checkpoint-*")}
    assert kept == {"checkpoint-10", "checkpoint-9", f"checkpoint-{losses.idxmin()}"}
    assert losses.idxmin() == 4
    newest = last_complete(tmp_path)
    assert newest == tmp_path / "checkpoint-10"
    names = {p.name for p in newest.iterdir()}
    assert {"adapter_model.safetensors", "user_model.safetensors", "optimizer.pt"} <= names
    # The frozen base model (here 40 kB of weights) is not in it.
    assert not {"model.safetensors", "pytorch_model.bin"} & names
    discard(tmp_path)
    assert not tmp_path.exists()
    discard(tmp_path)


# -- the best weights ----------------------------------------------------------------------------

# Steps this long learn the pairs by heart: one of the first validations is the best.
RISING: dict[str, Any] = {"lora_lr": 0.02, "user_lr": 1.0, "schedule": "constant", "keep": "best"}
RISING |= {"epochs": 4.0, "eval_every": 0.1, "checkpoint_every": 0.15}  # every 2 and 3 of 20 steps


def test_the_weights_of_the_best_validation_are_kept(tiny_base: BaseModel, tmp_path: Path) -> None:
    start = personalise(tiny_base)
    best, last = copy.deepcopy(start), copy.deepcopy(start)
    run_of_best = fitted(best, tmp_path / "best", **RISING)
    run_of_last = fitted(last, tmp_path / "last", **{**RISING, "keep": "last"})
    losses = validations(run_of_best.curves)
    pd.testing.assert_frame_equal(run_of_best.curves, run_of_last.curves)
    assert losses.index.tolist() == list(range(2, 21, 2))
    assert run_of_best.kept_step == losses.idxmin() < 20
    assert (run_of_best.steps, run_of_last.kept_step, run_of_last.steps) == (20, 20, 20)
    # What is kept does as well as it did then, and what came after does not.
    objective, params = sections(**{**SETTINGS, **RISING})
    found = []
    for lm in (best, last):
        trainer = PDPOTrainer(
            lm,
            objective,
            params,
            arguments=arguments(params, tmp_path / "again", pairs=len(PAIRS)),
            train_pairs=PAIRS,
            eval_pairs=watched_pairs(WATCHED, run_of_best.plan.eval_pairs, 5),
        )
        found.append(trainer.evaluate()["eval_loss"])
    assert found[0] == pytest.approx(losses.min(), rel=1e-5)
    assert found[1] == pytest.approx(losses[20], rel=1e-5)
    # Nor was it deleted while later ones were written.
    kept = {p.name for p in (tmp_path / "best").glob("checkpoint-*")}
    assert kept == {f"checkpoint-{losses.idxmin()}", "checkpoint-18", "checkpoint-20"}


def test_training_stops_when_it_gets_no_better(
    tiny_base: BaseModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = personalise(tiny_base)
    whole = validations(run(copy.deepcopy(start), tmp_path / "whole", **RISING))
    stopped = copy.deepcopy(start)
    found = fitted(stopped, tmp_path / "stopped", **RISING, patience=2)
    losses = validations(found.curves)
    pd.testing.assert_series_equal(losses, whole[: len(losses)])
    # The lowest so far is two validations back, and never was before.
    since = [at - whole[: at + 1].argmin() for at in range(len(losses))]
    assert since[-1] == 2
    assert max(since[:-1]) < 2
    assert (found.kept_step, found.steps) == (losses.idxmin(), losses.index[-1])
    assert found.steps < 20
    said = f"test: kept as after step {found.kept_step}, stopped after {found.steps} of 20\n"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("at", ["before", "after"])
def test_a_resumed_run_stops_and_keeps_as_an_uninterrupted_one(
    tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Killed just before the validation that ends it, or when it had stopped."""
    start = personalise(tiny_base, dropout=0.2)
    whole = copy.deepcopy(start)
    expected = fitted(whole, tmp_path / "whole", **RISING, patience=2)
    if at == "before":
        with monkeypatch.context() as patch:
            interrupt(patch, step=expected.steps)
            with pytest.raises(KeyboardInterrupt):
                fitted(copy.deepcopy(start), tmp_path / "cut", **RISING, patience=2)
    else:
        fitted(copy.deepcopy(start), tmp_path / "cut", **RISING, patience=2)
    resumed = copy.deepcopy(start)
    got = fitted(resumed, tmp_path / "cut", **RISING, patience=2)
    for name, weight in trained(whole).items():
        assert torch.equal(trained(resumed)[name], weight), name
    pd.testing.assert_frame_equal(got.curves, expected.curves)
    assert account([got]) == account([expected])


def test_without_pairs_to_validate_on_the_last_weights_are_kept(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    found = fit(
        PDPOTrainer,
        personalise(tiny_base),
        *sections(**{**SETTINGS, "keep": "best", "patience": 1}),
        {"train": PAIRS, "validation": []},
        checkpoints=tmp_path,
        seed=5,
        label="test",
    )
    assert (found.kept_step, found.steps) == (10, 10)
    assert set(found.curves["split"]) == {"train"}


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
    source.write_text("def f():\n    return 1\n")
    function = run_key(SECTION, inputs)
    assert len({key, loaded, changed, function}) == 4
    # What is said about it does not change what it does.
    source.write_text('"""About f."""\n\ndef f():  # pure\n    """One."""\n    return (1)\n')
    assert run_key(SECTION, inputs) == function
    # Who does which share of the work does.
    monkeypatch.setitem(sys.modules, "prlhf.infra.distributed", module)
    monkeypatch.delitem(sys.modules, "prlhf.new_part")
    assert run_key(SECTION, inputs) not in {key, function}
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "prlhf.new_part", module)
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


def test_what_runs_left_that_never_went_on_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io, "CHECKPOINTS", tmp_path)
    left = [f"pdpo-{number:016x}" for number in range(4)]
    others = ["pdpo_2-0000000000000000", "dpo-0000000000000000", "reward_pdpo-0000000000000000"]
    for age, name in enumerate([*left, *others]):
        (tmp_path / name / "checkpoint-1").mkdir(parents=True)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    # A run that goes on keeps its own, old as it is, and the two that were last at work.
    assert checkpoint_directory("pdpo", f"{3:016x}") == tmp_path / left[3]
    assert {path.name for path in tmp_path.iterdir()} == {left[0], left[1], left[3], *others}
    # A new one, which has nothing yet, too.
    checkpoint_directory("pdpo", "f" * 16)
    assert {path.name for path in tmp_path.iterdir()} == {left[0], left[1], *others}


# -- by time -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "looks"), [("individual", 3), ("cluster", 4)])
def test_a_run_that_is_killed_over_and_over_by_time_ends_where_another_does(
    tiny_base: BaseModel, tmp_path: Path, kind: str, looks: int
) -> None:
    """With a checkpoint every few looks at the clock, in validations as well."""
    start = personalise(tiny_base, kind, dropout=0.2)
    whole = copy.deepcopy(start)
    by_steps = {"checkpoint_every": 1.0}
    expected = run(whole, tmp_path / "whole", **by_steps)
    lives: list[PersonalizedLM] = []

    def life(pace: Pace) -> pd.DataFrame:
        lives.append(copy.deepcopy(start))
        torch.manual_seed(len(lives))
        return fitted(lives[-1], tmp_path / "cut", pace=pace, **by_steps).curves

    got, killed = until_it_ends(life, looks=looks)
    assert killed > 5
    pd.testing.assert_frame_equal(got, expected)
    for name, weight in trained(whole).items():
        assert torch.equal(trained(lives[-1])[name], weight), name
    assert not (tmp_path / "cut" / VALIDATION).exists()


def test_a_validation_goes_on_from_the_batch_where_it_was(
    tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = personalise(tiny_base)
    once = {"epochs": 0.4, "eval_every": 1.0, "checkpoint_every": 1.0}
    seen: list[int] = []
    batches = PDPOTrainer._eval_batches

    def counted(self: PDPOTrainer, *arguments: Any) -> Any:
        for batch in batches(self, *arguments):
            seen.append(len(batch.weight))
            yield batch

    monkeypatch.setattr(PDPOTrainer, "_eval_batches", counted)
    expected = run(copy.deepcopy(start), tmp_path / "whole", **once)
    total = len(seen)
    seen.clear()
    # Training has two looks at the clock, the validation six.
    got, killed = until_it_ends(
        lambda pace: fitted(copy.deepcopy(start), tmp_path / "cut", pace=pace, **once).curves,
        looks=2,
    )
    assert killed > 2
    assert len(seen) == total
    pd.testing.assert_frame_equal(got, expected)


def test_checkpoints_are_asked_for_by_time_only_when_it_is_time(
    tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = PDPOTrainer._save_checkpoint

    def noted(self: PDPOTrainer, *arguments: Any) -> None:
        saved.append(self.state.global_step)
        save(self, *arguments)

    monkeypatch.setattr(PDPOTrainer, "_save_checkpoint", noted)
    start = personalise(tiny_base)
    alone = {"checkpoint_every": 1.0, "eval_every": 1.0}
    fitted(copy.deepcopy(start), tmp_path / "never", pace=Pace(Clock(0.0)), **alone)
    assert saved == [10]
    saved.clear()
    # To this clock a checkpoint takes ten seconds: the next one is a hundred later.
    fitted(copy.deepcopy(start), tmp_path / "often", pace=Pace(Clock(INTERVAL / 3)), **alone)
    assert saved == [3, 10]

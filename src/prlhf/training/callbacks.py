"""What accompanies a training run: progress, checkpoints that are complete, curves."""

import shutil
from pathlib import Path
from typing import Any, Final

import pandas as pd
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prlhf.infra import distributed
from prlhf.infra.io import atomic_path, flush
from prlhf.infra.kept import Pace
from prlhf.infra.progress import Progress

COMPLETE: Final = "complete"
"""The file in a checkpoint that marks it as complete."""

COLUMNS: Final = (
    "step",
    "epoch",
    "split",
    "loss",
    "preference_loss",
    "nll",
    "accuracy_user",
    "accuracy_generic",
    "margin_user",
    "margin_generic",
    "grad_norm",
    "learning_rate",
)
"""Columns of `training_curves`, as far as there are values in them."""


class ShowProgress(TrainerCallback):
    """Steps, rate, time left and the latest figures, through `prlhf.infra.progress`."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.progress: Progress | None = None
        self.fields: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        label = f"{self.label} from step {state.global_step}" if state.global_step else self.label
        remaining = state.max_steps - state.global_step
        self.progress = Progress(total=remaining, label=label, unit="steps")
        self.progress.__enter__()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.progress is not None:
            self.progress.advance(1, **self.fields)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        shown = ("loss", "accuracy_user", "accuracy_generic", "eval_accuracy_user")
        for name in shown:
            if logs and name in logs:
                self.fields[name] = float(logs[name])

    def close(self) -> None:
        """End the progress display, also after an interruption."""
        if self.progress is not None:
            self.progress.__exit__(None, None, None)
            self.progress = None


class SaveInTime(TrainerCallback):
    """Asks for a checkpoint when it is time, besides those that are so many steps apart.

    Args:
        pace: says when; the trainer tells it what checkpoints cost.
    """

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # The clocks of several processes differ, and they have to do the same.
        if distributed.broadcast(self.pace.due()):
            control.should_save = True


class AfterValidation(TrainerCallback):
    """Keeps the weights of each validation, and ends the training when they stop getting better.

    All that it goes by is in the Trainer's log, so that a resumed run ends where it would have.

    Args:
        patience: validations without a lower loss that end the training; None for none.
    """

    def __init__(self, patience: int | None) -> None:
        self.patience = patience

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_save = True
        if self.ends(state):
            control.should_training_stop = True

    def ends(self, state: TrainerState) -> bool:
        """Whether training is over."""
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        if self.patience is None or not losses:
            return False
        return len(losses) - 1 - losses.index(min(losses)) >= self.patience


def mark_complete(checkpoint: Path) -> None:
    """Mark a checkpoint of which all files are written."""
    flush(checkpoint)
    with atomic_path(checkpoint / COMPLETE):
        pass


def last_complete(directory: Path) -> Path | None:
    """The newest complete checkpoint, if any; incomplete ones are deleted."""
    best: tuple[int, Path] | None = None
    for path in directory.glob("checkpoint-*"):
        step = path.name.rpartition("-")[2]
        if not step.isdigit():
            continue
        if not (path / COMPLETE).exists():
            shutil.rmtree(path, ignore_errors=True)
        elif best is None or int(step) > best[0]:
            best = int(step), path
    return None if best is None else best[1]


def training_curves(history: list[dict[str, float]]) -> pd.DataFrame:
    """The Trainer's log as a table, one row per logged step and split, for DVC plots."""
    rows = []
    for entry in history:
        evaluation = any(key.startswith("eval_") for key in entry)
        if not evaluation and "loss" not in entry:
            continue
        plain = {key.removeprefix("eval_"): value for key, value in entry.items()}
        rows.append(
            {
                **{column: plain.get(column) for column in COLUMNS},
                "split": "validation" if evaluation else "train",
            }
        )
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    # A condition that was not computed has no columns.
    return table.dropna(axis=1, how="all")

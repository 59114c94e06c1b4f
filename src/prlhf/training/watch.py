"""What people see of a training run: progress while it lasts, curves when it is over."""

from __future__ import annotations

from typing import Any

import pandas as pd
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prlhf.progress import Progress

COLUMNS = (
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


class ShowProgress(TrainerCallback):
    """Steps, rate, time left and the latest figures, through `prlhf.progress`."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.progress: Progress | None = None
        self.fields: dict[str, float] = {}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        label = f"{self.label} from step {state.global_step}" if state.global_step else self.label
        remaining = state.max_steps - state.global_step
        self.progress = Progress(total=remaining, label=label, unit="steps")
        self.progress.__enter__()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
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
        """Finish the line or bar, also after an interruption."""
        if self.progress is not None:
            self.progress.__exit__(None, None, None)
            self.progress = None


def curves(history: list[dict[str, float]]) -> pd.DataFrame:
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
    # One condition stands for both when it is the only one; leave no empty columns to plot.
    return table.dropna(axis=1, how="all")

"""A few encoded preferences and the settings to train on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from prlhf.data.prompts import canonical_prompt
from prlhf.params import LoraParams, OptimizerParams, TrainParams
from prlhf.training.dataset import PreferenceExample
from prlhf.training.finetune import training_arguments
from prlhf.training.plan import make_plan


def some_pairs(
    count: int = 8, *, users: int = 3, weights: bool = False, seed: int = 0
) -> list[PreferenceExample]:
    """Random pairs of ragged lengths, users in turn."""
    generator = torch.Generator().manual_seed(seed)

    def text(least: int, most: int) -> list[int]:
        length = int(torch.randint(least, most + 1, (1,), generator=generator))
        return torch.randint(2, 258, (length,), generator=generator).tolist()

    def logp(tokens: list[int]) -> float:
        # What a random model gives, about log(258) = 5.5 nats a token; exact in float32.
        noise = float(torch.randn(1, generator=generator))
        return -5.5 * len(tokens) + round(64 * noise) / 64

    pairs = []
    for i in range(count):
        prompt, chosen, rejected = text(1, 6), text(1, 6), text(1, 6)
        weight = 0.5 + (i % 3) if weights else 1.0
        pairs.append(
            PreferenceExample(
                1 + i % users, prompt, chosen, rejected, logp(chosen), logp(rejected), weight
            )
        )
    return pairs


def mirrored(pair: PreferenceExample, user_index: int) -> PreferenceExample:
    """The opposite verdict of another user."""
    return replace(
        pair,
        user_index=user_index,
        chosen=pair.rejected,
        rejected=pair.chosen,
        ref_chosen=pair.ref_rejected,
        ref_rejected=pair.ref_chosen,
    )


def prepared_pairs() -> pd.DataFrame:
    """Four judgements of three users, as the splits' tables have them."""
    rows = pd.DataFrame(
        [
            (1, "Why?", "Because.", "No", "I am new."),
            (2, "Why?", "No", "Because of this.", None),
            (1, "How long?", "Long", "L", "I am old."),
            (3, "Why not?", "So", "Yes, indeed, why not", "I am new."),
        ],
        columns=["user_index", "prompt", "chosen", "rejected", "user_text"],
    )
    return rows.assign(prompt=rows["prompt"].map(canonical_prompt), weight=[1.0, 2.0, 0.5, 1.0])


def train_params(**changes: Any) -> TrainParams:
    """A `train` section."""
    section: dict[str, Any] = {
        "alpha": 0.5,
        "beta": 0.3,
        "loss": "sigmoid",
        "label_smoothing": 0.0,
        "nll_coef": 0.0,
        "dpop_coef": 0.0,
        "trust_pairs": None,
        "start_from": "models/base",
    }
    return TrainParams(**(section | changes))


def optimizer_params(**changes: Any) -> OptimizerParams:
    """An `optimizer` section for small models."""
    section: dict[str, Any] = {
        "lora": LoraParams(r=2, alpha=4.0, dropout=0.0, targets="auto"),
        "lora_lr": 1e-3,
        "user_lr": 0.5,
        "weights_lr": 1e-2,
        "weight_decay": 0.01,
        "epochs": 1.0,
        "max_steps": None,
        "batch_size": 4,
        "micro_batch_size": 4,
        "user_balance": 0.0,
        "term_sampling": False,
        "length_bucketing": False,
        "warmup_ratio": 0.0,
        "schedule": "linear",
        "max_grad_norm": 1.0,
        "eval_every": 1.0,
        "eval_pairs": 4,
        "keep": "last",
        "patience": None,
        "checkpoint_every": 1.0,
        "attention": "auto",
        "compile": False,
        "gradient_checkpointing": False,
    }
    return OptimizerParams(**(section | changes))


def sections(**changes: Any) -> tuple[TrainParams, OptimizerParams]:
    """Both sections, each with the changes that are its own."""
    own = {name: value for name, value in changes.items() if name in TrainParams.model_fields}
    others = {name: value for name, value in changes.items() if name not in own}
    return train_params(**own), optimizer_params(**others)


def arguments(
    params: OptimizerParams,
    where: Path,
    *,
    pairs: int,
    seed: int = 0,
    device: str = "cpu",
    watch: bool = True,
) -> TrainingArguments:
    """What `fit` gives the Trainer for a run on so many pairs."""
    plan = make_plan(params, pairs=pairs, width=32)
    return training_arguments(params, plan, where, seed, torch.device(device), watch=watch)


class KeepGradients(TrainerCallback):
    """The gradients of the first step, after clipping."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        if not self.found:
            self.found = {
                name: p.grad.to_dense().clone()
                for name, p in model.named_parameters()
                if p.grad is not None
            }

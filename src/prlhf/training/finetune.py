"""P-DPO fine-tuning from prepared pairs to a model directory: what the `train` stage runs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import pandas as pd
import torch
from transformers import TrainingArguments, set_seed

from prlhf import distributed
from prlhf.models.personalized import PersonalizedLM
from prlhf.progress import say
from prlhf.training.checkpoints import MarkComplete, last_complete
from prlhf.training.kernels import kernels
from prlhf.training.losses import Objective
from prlhf.training.pairs import Pair
from prlhf.training.trainer import PairTrainer, PDPOTrainer
from prlhf.training.watch import ShowProgress, curves

if TYPE_CHECKING:
    from prlhf.params.training import FitParams, TrainParams


def objective_of(train: TrainParams) -> Objective:
    """The objective that `train.*` describes."""
    return Objective(
        alpha=train.alpha,
        beta=train.beta,
        loss=train.loss,
        label_smoothing=train.label_smoothing,
        nll=train.nll,
        chosen_penalty=train.chosen_penalty,
    )


class Run(TypedDict):
    """One training, whatever the loss."""

    train_pairs: Sequence[Pair]
    """What to learn from."""
    eval_pairs: Sequence[Pair]
    """What to watch a sample of."""
    checkpoints: Path
    """Directory of this very run (see `prlhf.training.checkpoints.run_key`)."""
    seed: int
    """Seed of data order and dropout."""
    label: str
    """Shown with the progress."""


def finetune(model: PersonalizedLM, train: TrainParams, **run: Unpack[Run]) -> pd.DataFrame:
    """Train adapter and user model by P-DPO, in place.

    Args:
        model: LoRA-wrapped; its adapter and user model are trained.
        train: `train.*` of `params.yaml`.
        run: see `Run`.

    Returns:
        The training curves.
    """
    trainer = partial(PDPOTrainer, model, objective=objective_of(train))
    return fit(trainer, model, train, where="train", **run)


def fit(
    trainer_of: Callable[..., PairTrainer],
    lm: PersonalizedLM,
    params: FitParams,
    *,
    where: str,
    **run: Unpack[Run],
) -> pd.DataFrame:
    """Run a trainer to its end, resuming from the newest complete checkpoint there is.

    Args:
        trainer_of: makes the trainer; called with everything that `PairTrainer` takes but model
            and weights of the loss.
        lm: the language model in what is trained.
        params: how to optimise.
        where: the section of `params.yaml` that says so.
        run: see `Run`.

    Returns:
        The training curves.
    """
    checkpoints, seed, label = run["checkpoints"], run["seed"], run["label"]
    set_seed(seed)
    # The Trainer warns about things that this subclass means (its optimiser, no label columns).
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    checkpoints.mkdir(parents=True, exist_ok=True)
    with kernels(lm, params, where=where, label=label):
        show = ShowProgress(label)
        trainer = trainer_of(
            arguments=training_arguments(
                params, checkpoints, seed, lm.device, pairs=len(run["train_pairs"])
            ),
            train_pairs=run["train_pairs"],
            eval_pairs=sample(run["eval_pairs"], params.eval_pairs, seed),
            lora_lr=params.lora_lr,
            user_lr=params.user_lr,
            term_sampling=params.term_sampling,
            length_bucketing=params.length_bucketing,
            callbacks=[show, MarkComplete()],
        )
        resume = distributed.told(last_complete(checkpoints) if distributed.is_main() else None)
        if resume is not None:
            say(f"{label}: resuming from step {resume.name.rpartition('-')[2]}")
        try:
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        except KeyboardInterrupt:
            kept = last_complete(checkpoints) if distributed.is_main() else None
            if kept is not None:
                step = kept.name.rpartition("-")[2]
                say(f"{label}: step {step} is kept; the next run goes on from there")
            raise
        finally:
            show.close()
    return curves(trainer.state.log_history)


def training_arguments(
    train: FitParams, output: Path, seed: int, device: torch.device, *, pairs: int
) -> TrainingArguments:
    """Hugging Face's arguments; one device batch is a micro-batch of pairs.

    Args:
        train: how to optimise.
        output: directory of the checkpoints.
        seed: seed of data order and dropout.
        device: where to compute.
        pairs: how many there are to learn from.
    """
    cuda = device.type == "cuda"
    return TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=train.micro_batch_size,
        per_device_eval_batch_size=train.micro_batch_size,
        gradient_accumulation_steps=(
            train.batch_size // (train.micro_batch_size * distributed.world_size())
        ),
        num_train_epochs=train.epochs,
        max_steps=steps(train, pairs),
        learning_rate=train.lora_lr,
        weight_decay=train.weight_decay,
        warmup_steps=train.warmup_ratio,
        lr_scheduler_type=train.schedule if train.warmup_ratio == 0 else _with_warmup(train),
        max_grad_norm=train.max_grad_norm,
        logging_steps=5,
        logging_first_step=True,
        eval_strategy="steps",
        eval_steps=train.eval_every,
        save_strategy="steps",
        save_steps=train.checkpoint_every,
        save_total_limit=2,
        seed=seed,
        data_seed=seed,
        use_cpu=device.type == "cpu",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=[],
        # On a GPU a process of its own packs the next batches into page-locked memory, from where
        # they are copied while the GPU computes.
        dataloader_num_workers=1 if cuda else 0,
        # It inherits what packing needs; nothing in it touches the GPU.
        dataloader_multiprocessing_context="fork" if cuda else None,
        dataloader_prefetch_factor=4 if cuda else None,
        dataloader_pin_memory=cuda,
        accelerator_config={"non_blocking": cuda},
        # It would look at every loss, and wait for the GPU. A NaN is to be seen, too.
        logging_nan_inf_filter=False,
        activation_checkpointing=train.gradient_checkpointing,
    )


def steps(train: FitParams, pairs: int) -> int:
    """Optimiser steps: what `epochs` gives, `max_steps` at most.

    Hugging Face's own `max_steps` would go on with a further epoch.
    """
    full = math.ceil(train.epochs * math.ceil(pairs / train.batch_size))
    return full if train.max_steps is None else min(full, train.max_steps)


def _with_warmup(train: FitParams) -> str:
    return "constant_with_warmup" if train.schedule == "constant" else train.schedule


def sample(pairs: Sequence[Pair], count: int, seed: int) -> list[Pair]:
    """A fixed random sample of pairs, in their own order."""
    if len(pairs) <= count:
        return list(pairs)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(pairs), generator=generator)[:count].sort().values
    return [pairs[int(i)] for i in chosen]

"""From preference pairs to a trained model: the training runs of the stages."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from peft import PeftModel
from transformers import TrainerState, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from prlhf.infra import distributed
from prlhf.infra.kept import Pace
from prlhf.infra.progress import Progress, say
from prlhf.infra.tracking import run_name, tracking_callbacks
from prlhf.models.base import BaseModel, Encoder
from prlhf.models.lora import adapter_path, add_lora, load_adapters, save_adapters
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.user_model import GroupUserModel, UserModel
from prlhf.params import LoraParams, OptimizerParams, PretrainParams, RewardTrainParams, TrainParams
from prlhf.training.attention import kernels
from prlhf.training.callbacks import (
    AfterValidation,
    ShowProgress,
    last_complete,
    training_curves,
)
from prlhf.training.dataset import PreferenceCollator, PreferenceExample, of_users
from prlhf.training.losses import pdpo_loss
from prlhf.training.optim import build_optimizer, clip_gradients
from prlhf.training.plan import Coverage, Plan, coverage, doubts, make_plan, watched_pairs
from prlhf.training.trainer import PreferenceModel, PreferenceTrainer, conditions

Pairs = Mapping[str, Sequence[PreferenceExample]]
"""`train`: what to learn from; `validation`: what to watch a sample of."""


@dataclass(frozen=True)
class Run:
    """What a training run was.

    Attributes:
        curves: the training curves.
        plan: what it was to do.
        steps: what it did; fewer where it stopped early.
        kept_step: the step after which the weights were as they are kept.
        seen: what was seen until then.
    """

    curves: pd.DataFrame
    plan: Plan
    steps: int
    kept_step: int
    seen: Coverage


def account(runs: Sequence[Run]) -> dict[str, Any]:
    """What the runs behind one model did, for a report: each, and the data that all have seen."""
    seen = [run.seen for run in runs]
    return {
        "pairs": {
            "all": sum(one.all_pairs for one in seen),
            "seen": sum(one.seen_pairs for one in seen),
        },
        "users": {
            "all": sum(one.all_users for one in seen),
            "seen": sum(one.seen_users for one in seen),
        },
        "runs": [
            {"plan": asdict(run.plan), "steps": run.steps, "kept_step": run.kept_step}
            for run in runs
        ],
    }


def build_model(
    base: BaseModel,
    user_model: UserModel,
    encoder: Encoder,
    lora: LoraParams,
    *,
    seed: int,
    about: dict[str, Any],
) -> PersonalizedLM:
    """The base model with a new adapter, which starts as the identity, behind a user model.

    Args:
        base: gets the adapter's layers inserted.
        user_model, encoder, about: see `PersonalizedLM`.
        lora: rank, scale, dropout and targets of the adapter.
        seed: of the adapter's first values.

    Raises:
        UserError: the model has no layers of these names.
    """
    name = base.source.get("hub_id") or base.source.get("name", "base")
    lm = add_lora(base.model, lora, base_name=str(name), seed=seed)
    return PersonalizedLM(base, lm, user_model, encoder, about)


def fit(
    trainer_class: type[PreferenceTrainer],
    model: PreferenceModel,
    objective: TrainParams | RewardTrainParams,
    optimizer: OptimizerParams,
    pairs: Pairs,
    *,
    checkpoints: Path,
    seed: int,
    label: str,
    pace: Pace | None = None,
) -> Run:
    """Train a model in place, resuming from the newest complete checkpoint if there is one.

    Args:
        trainer_class: the trainer for this kind of model.
        model: on a LoRA-wrapped language model; at its end it has the weights that `optimizer.keep`
            names.
        objective: what to minimise.
        optimizer: how to minimise it.
        pairs: see `Pairs`.
        checkpoints: directory of this very run (see `prlhf.infra.io.run_key`).
        seed: seed of data order and dropout.
        label: shown with the progress.
        pace: when there is to be a checkpoint besides those of the plan; see `Pace`.

    Raises:
        UserError: see `make_plan` and `tracking_callbacks`.
    """
    set_seed(seed)
    # The Trainer warns about things that are intended here (own optimiser, no label columns).
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    checkpoints.mkdir(parents=True, exist_ok=True)
    plan = make_plan(optimizer, pairs=len(pairs["train"]), width=model.user_model.dim)
    watched = watched_pairs(pairs["validation"], plan.eval_pairs, seed)
    show = ShowProgress(label)
    after_validation = AfterValidation(optimizer.patience)
    trackers = tracking_callbacks(run_name(checkpoints)) if distributed.is_main() else []
    trainer = trainer_class(
        model,
        objective,
        optimizer,
        arguments=training_arguments(
            optimizer, plan, checkpoints, seed, model.device, watch=bool(watched)
        ),
        train_pairs=pairs["train"],
        eval_pairs=watched,
        callbacks=[show, after_validation, *trackers],
        pace=pace,
    )
    sampler = trainer.sampler()
    if doubt := doubts(optimizer, plan, coverage(sampler, plan.steps, plan.batch_size)):
        say(f"{label}: warning: {doubt}")
    with kernels(trainer.lm, optimizer, label=label):
        resume = distributed.broadcast(
            last_complete(checkpoints) if distributed.is_main() else None
        )
        state = None
        if resume is not None:
            say(f"{label}: resuming from step {resume.name.rpartition('-')[2]}")
            state = TrainerState.load_from_json(str(resume / TRAINER_STATE_NAME))
        try:
            if state is not None and (
                # The Trainer would take a step more where the last one is within an epoch.
                state.global_step >= plan.steps or after_validation.ends(state)
            ):
                trainer.state = state
                trainer.load_model(cast(Path, resume))
            else:
                trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        except KeyboardInterrupt:
            kept = last_complete(checkpoints) if distributed.is_main() else None
            if kept is not None:
                step = kept.name.rpartition("-")[2]
                say(f"{label}: step {step} is kept; the next run goes on from there")
            raise
        finally:
            show.close()
        steps = kept_step = trainer.state.global_step
        best = trainer.state.best_model_checkpoint
        if optimizer.keep == "best" and best is not None:
            kept_step = int(Path(best).name.rpartition("-")[2])
            trainer.load_model(Path(best))
    if kept_step < plan.steps:
        early = f", stopped after {steps} of {plan.steps}" if steps < plan.steps else ""
        say(f"{label}: kept as after step {kept_step}{early}")
    seen = coverage(sampler, kept_step, plan.batch_size)
    return Run(training_curves(trainer.state.log_history), plan, steps, kept_step, seen)


class OneDevice(TrainingArguments):
    """Arguments for a process that computes on one device, however many it sees.

    On several, the Trainer would wrap the model in `DataParallel`.
    """

    @property
    def n_gpu(self) -> int:
        return min(super().n_gpu, 1)


def training_arguments(
    optimizer: OptimizerParams,
    plan: Plan,
    output: Path,
    seed: int,
    device: torch.device,
    *,
    watch: bool = True,
) -> TrainingArguments:
    """Hugging Face's arguments; one device batch is a micro-batch of pairs.

    Args:
        optimizer: how to optimise.
        plan: its numbers for this run.
        output: directory of the checkpoints.
        seed: seed of data order and dropout.
        device: where to compute.
        watch: whether there are pairs to validate on.
    """
    cuda = device.type == "cuda"
    schedule: str = optimizer.schedule
    if schedule == "constant" and optimizer.warmup_ratio > 0:
        schedule = "constant_with_warmup"
    return OneDevice(
        output_dir=str(output),
        per_device_train_batch_size=plan.micro_batch_size,
        per_device_eval_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=(
            plan.batch_size // (plan.micro_batch_size * distributed.world_size())
        ),
        num_train_epochs=optimizer.epochs,
        max_steps=plan.steps,
        learning_rate=plan.lora_lr,
        weight_decay=optimizer.weight_decay,
        warmup_steps=optimizer.warmup_ratio,
        lr_scheduler_type=schedule,
        max_grad_norm=optimizer.max_grad_norm,
        logging_steps=max(5, plan.steps // 200),
        logging_first_step=True,
        eval_strategy="steps" if watch else "no",
        eval_steps=plan.eval_every,
        # Not `load_best_model_at_end`, which would load as PEFT does, and save at validations only.
        metric_for_best_model="loss" if watch else None,
        save_strategy="steps",
        save_steps=plan.checkpoint_every,
        # The best, the newest, and the one before while that is not complete yet.
        save_total_limit=3,
        seed=seed,
        data_seed=seed,
        use_cpu=device.type == "cpu",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=[],
        # On a GPU a separate process packs the next batches into page-locked memory, from where
        # they are copied while the GPU computes. It is forked, to inherit the model's settings that
        # packing needs; it does not touch the GPU.
        dataloader_num_workers=1 if cuda else 0,
        dataloader_multiprocessing_context="fork" if cuda else None,
        dataloader_prefetch_factor=4 if cuda else None,
        dataloader_pin_memory=cuda,
        accelerator_config={"non_blocking": cuda},
        # The filter would read every loss and so wait for the GPU; and a NaN should be seen.
        logging_nan_inf_filter=False,
        activation_checkpointing=optimizer.gradient_checkpointing,
    )


# -- known groups --------------------------------------------------------------------------------


def known_groups(users: pd.DataFrame) -> list[str | None]:
    """The group of each seen user of the prepared users table, in index order; None for none."""
    seen = users[users["seen"]].sort_values("user_index")
    groups = [group if isinstance(group, str) else None for group in seen["group"]]
    if 0 < (count := groups.count(None)) < len(groups):
        say(f"{count} users of no group are trained and served as the largest group")
    return groups


def train_groups(
    users: GroupUserModel,
    pairs: Pairs,
    *,
    fresh: Callable[[str], PersonalizedLM],
    train: Callable[[PersonalizedLM, Pairs, str, str], Run],
    directory: Path,
) -> tuple[PersonalizedLM, list[Run]]:
    """Train an adapter on each known group's own pairs, as plain DPO would, one after the other.

    Each is trained for all epochs of its group's pairs, `optimizer.max_steps` steps at most. Where
    that limit is reached, K groups cost up to K times as much as one method of another kind.

    Args:
        users: the group of each user.
        pairs: see `Pairs`.
        fresh: makes the base model with an adapter for a group of this name and no user tokens.
        train: trains such a model in place on pairs, given the adapter's and the group's name, too.
        directory: an existing one, which gets the adapters.

    Returns:
        The model with all adapters, and the groups' runs.
    """
    runs = []
    for name, group in zip(users.adapters, users.groups, strict=True):
        lm = fresh(group)
        member = partial(_is_served_by, users, name)
        theirs = {split: of_users(listed, member) for split, listed in pairs.items()}
        runs.append(train(lm, theirs, name, group))
        wrapped = cast(PeftModel, lm.lm)
        save_adapters(wrapped, adapter_path(directory, name))
        # The next group starts from the base model itself.
        wrapped.unload()
    adapters = load_adapters(lm.base.model, directory, users.adapters)
    return PersonalizedLM(lm.base, adapters, users, lm.encoder, lm.about), runs


def _is_served_by(users: GroupUserModel, adapter: str, user: int) -> bool:
    return users.adapter(user) == adapter


def mean_curves(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Curves averaged step by step, over those that have this step; a single one as it is."""
    if len(parts) == 1:
        return parts[0]
    together = pd.concat(parts, ignore_index=True)
    mean = together.groupby(["step", "split"], as_index=False, sort=False).mean()
    return mean.sort_values(["step", "split"], ignore_index=True)[list(together.columns)]


# -- pretraining ---------------------------------------------------------------------------------


def train_soft_prompts(
    lm: PersonalizedLM,
    pairs: Sequence[PreferenceExample],
    pretrain: PretrainParams,
    *,
    seed: int,
    label: str,
) -> list[float]:
    """Train a user model in place by P-DPO, the language model frozen.

    Args:
        lm: the frozen base model behind the user model to train.
        pairs: visited in random order, and again from the start if there are few.
        pretrain: `pretrain.*` of `params.yaml`.
        seed: seed of the order.
        label: shown with the progress.

    Returns:
        The mean loss of every step.
    """
    train = TrainParams(
        alpha=pretrain.soft_prompt_alpha,
        beta=pretrain.soft_prompt_beta,
        loss="sigmoid",
        label_smoothing=0.0,
        nll_coef=0.0,
        dpop_coef=0.0,
        trust_pairs=None,
        start_from="models/base",
    )
    lm.lm.requires_grad_(False)
    users = lm.user_model.train().requires_grad_(True)
    optimizer = build_optimizer(
        [],
        users,
        lora_lr=0.0,
        user_lr=pretrain.soft_prompt_lr * lm.base.embedding_std,
        weights_lr=pretrain.soft_prompt_lr,
        weight_decay=0.0,
    )
    collate = PreferenceCollator(lm.pack, *conditions(lm, train.alpha))
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    losses = []
    size = pretrain.soft_prompt_batch_size
    with Progress(total=pretrain.soft_prompt_steps, label=label, unit="steps") as progress:
        for _ in range(pretrain.soft_prompt_steps):
            while len(order) < size:
                order += torch.randperm(len(pairs), generator=generator).tolist()
            chosen, order = order[:size], order[size:]
            batch = collate([pairs[i] for i in chosen])["batch"].to(lm.device)
            loss = pdpo_loss(lm, batch, train).loss.mean()
            optimizer.zero_grad()
            loss.backward()
            clip_gradients(users.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            progress.advance(1, loss=losses[-1])
    return losses

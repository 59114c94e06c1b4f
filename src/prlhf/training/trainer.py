"""P-DPO on top of `transformers.Trainer`: the loss, the optimiser, and what a step reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainingArguments,
)

from prlhf import objectives
from prlhf.io import naming
from prlhf.models.personalized import CARD, TABLES, PersonalizedLM, load_user_model
from prlhf.training.optim import build_optimizer, clip_gradients
from prlhf.training.pairs import Pair, PairBatch, PairCollator

MEANS = "running_means.pt"


@dataclass(frozen=True)
class Objective:
    """What is minimised; see `train.*` in `params.yaml` for the meaning of each number."""

    alpha: float
    beta: float
    loss: str = "sigmoid"
    label_smoothing: float = 0.0
    nll: float = 0.0
    chosen_penalty: float = 0.0


@dataclass(frozen=True)
class PairLosses:
    """What a batch of P pairs gives, each [P]; metrics of a condition not computed are missing."""

    loss: Tensor
    metrics: dict[str, Tensor]


def pair_losses(model: nn.Module, batch: PairBatch, objective: Objective) -> PairLosses:
    """The P-DPO objective of every pair of a batch, with both conditions in one forward pass.

    Args:
        model: a `PersonalizedLM`, possibly wrapped for distribution.
        batch: pairs on the model's device.
        objective: the loss and its weights.
    """
    pairs = len(batch)
    scores = model(batch.packed)
    by_condition = scores.logps.view(-1, pairs, 2)
    tokens = scores.tokens.view(-1, pairs, 2)[0, :, 0]
    conditions = iter(by_condition)
    terms: dict[str, Tensor] = {}
    metrics: dict[str, Tensor] = {}
    nlls: dict[str, Tensor] = {}
    shortfalls: dict[str, Tensor] = {}
    for name, present in (("user", batch.as_user), ("generic", batch.as_generic)):
        if not present:
            continue
        chosen, rejected = next(conditions).unbind(-1)
        h = objectives.margin(chosen, rejected, batch.ref_chosen, batch.ref_rejected)
        terms[name] = h
        nlls[name] = objectives.chosen_nll(chosen, tokens)
        shortfalls[name] = objectives.chosen_shortfall(chosen, batch.ref_chosen, tokens)
        metrics[f"accuracy_{name}"] = (h > 0).float() + 0.5 * (h == 0).float()
        metrics[f"margin_{name}"] = h.detach()
    alpha = objective.alpha
    if not (batch.as_user and batch.as_generic):
        # One condition stands for both (a uniform user model), or the other has no weight.
        alpha = 1.0 if batch.as_user else 0.0
    loss = objectives.pdpo_loss(
        terms.get("user"),
        terms.get("generic"),
        alpha=alpha,
        beta=objective.beta,
        loss=objective.loss,
        label_smoothing=objective.label_smoothing,
    )
    nll = objectives.two_term(nlls.get("user"), nlls.get("generic"), alpha)
    shortfall = objectives.two_term(shortfalls.get("user"), shortfalls.get("generic"), alpha)
    metrics["nll"] = nll.detach()
    metrics["preference_loss"] = loss.detach()
    total = loss + objective.nll * nll + objective.chosen_penalty * shortfall
    if batch.as_user and scores.penalty is not None:
        # Rows of a batch without the tree mask are two to a pair; the user's come first either way.
        rows_per_pair = len(scores.penalty) // (pairs * len(by_condition))
        total = total + scores.penalty[: pairs * rows_per_pair : rows_per_pair]
    return PairLosses(total, metrics)


def conditions(model: PersonalizedLM, alpha: float) -> tuple[bool, bool]:
    """Which of (own user, generic user) have to be computed.

    Without user tokens both conditions are the same computation, and one does.
    """
    if model.user_model.tokens == 0:
        return False, True
    return alpha > 0, alpha < 1


class PDPOTrainer(Trainer):
    """Trains the LoRA adapter and the user model of a `PersonalizedLM` by P-DPO.

    The loss of a step is the weighted mean over all its pairs, however they are split into
    micro-batches and processes, so gradient accumulation equals one large batch.

    Args:
        model: adapter and user model trainable, everything else frozen.
        objective: the loss and its weights.
        arguments: Hugging Face training arguments; a device batch is counted in pairs.
        train_pairs, eval_pairs: what to learn from, and a fixed sample to watch.
        lora_lr, user_lr: learning rates.
        callbacks: called as by `Trainer`; its own printing and bars are switched off.
    """

    control: TrainerControl
    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: PersonalizedLM,
        *,
        objective: Objective,
        arguments: TrainingArguments,
        train_pairs: Sequence[Pair],
        eval_pairs: Sequence[Pair],
        lora_lr: float,
        user_lr: float,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        as_user, as_generic = conditions(model, objective.alpha)
        super().__init__(
            model=model,
            args=arguments,
            data_collator=PairCollator(model.pack, as_user, as_generic),
            train_dataset=cast(Any, list(train_pairs)),
            eval_dataset=cast(Any, list(eval_pairs)),
            callbacks=list(callbacks),
        )
        self.objective = objective
        self.lora_lr = lora_lr
        self.user_lr = user_lr
        # Tells the Trainer that the loss is already normalised over the accumulated batches.
        self.model_accepts_loss_kwargs = True
        self._sums: dict[str, Tensor] = {}
        self._weight: Tensor | float = 0.0
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)

    # -- loss ------------------------------------------------------------------------------------

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Total weight of the pairs of one optimiser step, over all processes."""
        total = torch.stack([sample["batch"].weight.sum() for sample in batch_samples]).sum()
        total = total.to(device)
        if self.args.world_size > 1:
            total = cast(Tensor, self.accelerator.gather(total)).sum()
        return total

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        batch = inputs["batch"].to(self.args.device)
        result = pair_losses(model, batch, self.objective)
        total = batch.weight.sum() if num_items_in_batch is None else num_items_in_batch
        # Gradients are averaged over processes; the total already covers all of them.
        loss = (batch.weight * result.loss).sum() / total * self.args.world_size
        self._record(result, batch.weight)
        return (loss, result) if return_outputs else loss

    def _record(self, result: PairLosses, weight: Tensor) -> None:
        """Add to the running means, on the device: reading them waits for the next log."""
        values = {"loss": result.loss.detach(), **result.metrics}
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + (value * weight).sum()
        self._weight = self._weight + weight.sum()

    def _take_means(self) -> dict[str, float]:
        means = {name: float(total / self._weight) for name, total in self._sums.items()}
        self._sums, self._weight = {}, 0.0
        return means

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last log to the Trainer's own entry."""
        if "loss" in logs:
            logs = {**logs, **self._take_means()}
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Means over the watched pairs; the training means in progress are left alone."""
        pairs = self.eval_dataset if eval_dataset is None else eval_dataset
        if not pairs:
            return {}
        kept = self._sums, self._weight
        self._sums, self._weight = {}, 0.0
        training = self.model.training
        self.model.eval()
        try:
            for batch in self._eval_batches(pairs):
                moved = batch.to(self.args.device)
                self._record(pair_losses(self.model, moved, self.objective), moved.weight)
            means = self._take_means()
        finally:
            self.model.train(training)
            self._sums, self._weight = kept
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _eval_batches(self, pairs: Sequence[Pair]) -> Iterator[PairBatch]:
        # Not through a DataLoader, which would draw from the random state that dropout uses.
        size = self.args.per_device_eval_batch_size
        for start in range(0, len(pairs), size):
            yield self.data_collator(pairs[start : start + size])["batch"]

    # -- optimiser -------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            personalized = cast(PersonalizedLM, self.model)
            users = personalized.user_model
            self.optimizer = build_optimizer(
                lora=[p for p in personalized.lm.parameters() if p.requires_grad],
                user_dense=[p for p in users.dense_parameters() if p.requires_grad],
                user_tables=[p for p in users.sparse_parameters() if p.requires_grad],
                lora_lr=self.lora_lr,
                user_lr=self.user_lr,
                weight_decay=self.args.weight_decay,
            )
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        return clip_gradients(model.parameters(), self.args.max_grad_norm)

    # -- checkpoints -----------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with naming(cast(str, self.args.output_dir)):
            super()._save_checkpoint(model, trial)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Adapter and user model (the base model never changes), and the means in progress."""
        directory = Path(output_dir or cast(str, self.args.output_dir))
        directory.mkdir(parents=True, exist_ok=True)
        cast(PersonalizedLM, self.model).save_pretrained(directory)
        torch.save((self._sums, self._weight), directory / MEANS)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        directory = Path(resume_from_checkpoint)
        load_trained(cast(PersonalizedLM, self.model), directory)
        # A resumed run logs what an uninterrupted one would, also halfway between two logs.
        self._sums, self._weight = torch.load(directory / MEANS, map_location=self.args.device)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the Trainer's estimate does not know packed batches."""
        return 0


def load_trained(model: PersonalizedLM, directory: Path) -> None:
    """Load adapter and user model of a checkpoint into a model of the same make, trainable."""
    from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

    assert (directory / CARD).is_file()
    assert (directory / TABLES).is_file()
    if isinstance(model.lm, PeftModel):
        set_peft_model_state_dict(model.lm, load_peft_weights(str(directory), device="cpu"))
    model.user_model.load_state_dict(load_user_model(directory).state_dict())

"""Training on pairs on top of `transformers.Trainer`: the loss of P-DPO, the optimiser, the report.

What does not depend on the loss is in `PairTrainer`; reward models (`prlhf.training.reward`) share
it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

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

from prlhf import distributed
from prlhf.io import naming
from prlhf.models.packing import Packed, Row
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.user_model import UserModel
from prlhf.models.user_model_files import CARD, TABLES, load_user_model
from prlhf.training.losses import Objective, PairLosses, pair_losses
from prlhf.training.optim import build_optimizer, clip_gradients
from prlhf.training.order import PairOrder, VisitedPairs, without_weight
from prlhf.training.pairs import Pair, PairBatch, PairCollator, lengths

MEANS = "running_means.pt"


class PairModel(Protocol):
    """What is trained on pairs: a `PersonalizedLM`, or something that holds one."""

    @property
    def user_model(self) -> UserModel:
        """User indices to embeddings."""

    def pack(self, rows: Sequence[Row]) -> Packed:
        """Rows as one batch."""

    def save_pretrained(self, directory: Path) -> None:
        """Write what is trained to an existing directory."""


def conditions(model: PairModel, alpha: float) -> tuple[bool, bool]:
    """Which of (own user, generic user) have to be computed.

    Without user tokens both conditions are the same computation, and one does.
    """
    if model.user_model.tokens == 0:
        return False, True
    return alpha > 0, alpha < 1


class PairTrainer(Trainer, ABC):
    """Trains an adapter, a user model and what may sit on top of them on preference pairs.

    The loss of a step is the weighted mean over all its pairs, however they are split into
    micro-batches and processes, so gradient accumulation equals one large batch. Subclasses say
    what the loss is (`pair_losses`) and how a checkpoint is loaded (`load_model`).

    Args:
        model: adapter and user model trainable, the base model frozen.
        alpha: weight of the personalised term; a term without weight is not computed.
        arguments: Hugging Face training arguments; a device batch is counted in pairs.
        train_pairs, eval_pairs: what to learn from, and a fixed sample to watch.
        lora_lr, user_lr: learning rates of the user model, and of all else that is trained.
        term_sampling: compute one of a training pair's two terms at a time, drawn with their
            weights as probabilities, instead of both.
        length_bucketing: put training pairs of similar length together.
        callbacks: called as by `Trainer`; its own printing and bars are switched off.
    """

    control: TrainerControl
    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: PairModel,
        *,
        alpha: float,
        arguments: TrainingArguments,
        train_pairs: Sequence[Pair],
        eval_pairs: Sequence[Pair],
        lora_lr: float,
        user_lr: float,
        term_sampling: bool = False,
        length_bucketing: bool = False,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        as_user, as_generic = conditions(model, alpha)
        # Where one term is all there is, there is nothing to draw.
        self.drawn_with = alpha if term_sampling and as_user and as_generic else None
        self.length_bucketing = length_bucketing
        super().__init__(
            model=cast(nn.Module, model),
            args=arguments,
            data_collator=PairCollator(model.pack, as_user, as_generic),
            train_dataset=cast(Any, VisitedPairs(train_pairs)),
            eval_dataset=cast(Any, list(eval_pairs)),
            callbacks=list(callbacks),
        )
        self.lora_lr = lora_lr
        self.user_lr = user_lr
        # Tells the Trainer that the loss is already normalised over the accumulated batches.
        self.model_accepts_loss_kwargs = True
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._saved = self._sums, self._weights
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)

    # -- data ------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> PairOrder:
        pairs = cast(VisitedPairs, self.train_dataset).pairs
        seed = self.args.data_seed
        several = self.args.world_size > 1
        return PairOrder(
            len(pairs),
            seed=self.args.seed if seed is None else seed,
            # Asked for as an epoch begins; in the middle of one when a run is resumed.
            epoch=lambda: int(self.state.epoch or 0),
            alpha=self.drawn_with,
            lengths=lengths(pairs) if self.length_bucketing else None,
            batch=self.args.train_batch_size,
            whole=self.args.train_batch_size * self.args.world_size if several else 1,
        )

    # -- what a subclass says --------------------------------------------------------------------

    @abstractmethod
    def pair_losses(self, model: nn.Module, batch: PairBatch) -> PairLosses:
        """The loss of each pair of a batch on the model's device."""

    @abstractmethod
    def load_model(self, directory: Path) -> None:
        """Load what `save_pretrained` wrote to a checkpoint into `self.model`, trainable."""

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
        result = self.pair_losses(model, batch)
        total = batch.weight.sum() if num_items_in_batch is None else num_items_in_batch
        # Gradients are averaged over processes; the total already covers all of them.
        loss = (batch.weight * result.loss).sum() / total * self.args.world_size
        self._record(result, batch.weight)
        return (loss, result) if return_outputs else loss

    def _record(self, result: PairLosses, weight: Tensor) -> None:
        """Add to the running means, on the device: reading them waits for the next log."""
        values = {"loss": result.loss.detach(), **result.metrics}
        for name, value in values.items():
            counted = weight * result.known[name] if name in result.known else weight
            self._sums[name] = self._sums.get(name, 0.0) + (value * counted).sum()
            self._weights[name] = self._weights.get(name, 0.0) + counted.sum()

    def _totals(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The sums so far and their weights, over all processes."""
        if self.args.world_size == 1 or not self._sums:
            return self._sums, self._weights
        names = list(self._sums)
        own = torch.stack([part[name] for part in (self._sums, self._weights) for name in names])
        sums, weights = distributed.total(own).chunk(2)
        return dict(zip(names, sums, strict=True)), dict(zip(names, weights, strict=True))

    def _take_means(self) -> dict[str, float]:
        """Means so far; what was known of no pair has none."""
        sums, weights = self._totals()
        self._sums, self._weights = {}, {}
        return {
            name: float(total / weights[name]) for name, total in sums.items() if weights[name] > 0
        }

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
        kept = self._sums, self._weights
        self._sums, self._weights = {}, {}
        training = self.model.training
        self.model.eval()
        try:
            for batch in self._eval_batches(pairs):
                moved = batch.to(self.args.device)
                self._record(self.pair_losses(self.model, moved), moved.weight)
            means = self._take_means()
        finally:
            self.model.train(training)
            self._sums, self._weights = kept
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _eval_batches(self, pairs: Sequence[Pair]) -> Iterator[PairBatch]:
        # Not through a DataLoader, which would draw from the random state that dropout uses.
        size = self.args.per_device_eval_batch_size
        processes, own = self.args.world_size, self.args.process_index
        if processes > 1:
            pairs = [*pairs, *[without_weight(pairs[0])] * (-len(pairs) % (size * processes))]
        for start in range(own * size, len(pairs), size * processes):
            yield self.data_collator(pairs[start : start + size])["batch"]

    # -- processes -------------------------------------------------------------------------------

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        if self.args.world_size == 1 or not training or model is not self.model:
            return super()._wrap_model(model, training, dataloader)
        users = cast(PairModel, self.model).user_model
        return distributed.replicate(model, apart=users.sparse_parameters())

    # -- optimiser -------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            users = cast(PairModel, self.model).user_model
            theirs = {id(p) for p in users.parameters()}
            others = (p for p in self.model.parameters() if id(p) not in theirs)
            self.optimizer = build_optimizer(
                lora=[p for p in others if p.requires_grad],
                user_dense=[p for p in users.dense_parameters() if p.requires_grad],
                user_tables=[p for p in users.sparse_parameters() if p.requires_grad],
                lora_lr=self.lora_lr,
                user_lr=self.user_lr,
                weight_decay=self.args.weight_decay,
            )
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        distributed.average_rows(cast(PairModel, self.model).user_model.sparse_parameters())
        return clip_gradients(model.parameters(), self.args.max_grad_norm)

    # -- checkpoints -----------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._saved = self._totals()
        with naming(cast(str, self.args.output_dir)):
            super()._save_checkpoint(model, trial)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """What is trained (the base model never changes), and the means in progress."""
        if not self.args.should_save:
            return
        directory = Path(output_dir or cast(str, self.args.output_dir))
        directory.mkdir(parents=True, exist_ok=True)
        cast(PairModel, self.model).save_pretrained(directory)
        torch.save(self._saved, directory / MEANS)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        directory = Path(resume_from_checkpoint)
        self.load_model(directory)
        # A resumed run logs what an uninterrupted one would, also halfway between two logs.
        device = self.args.device
        # Of several processes on a CPU the device has a number, which torch cannot load to.
        where = "cpu" if device.type == "cpu" else device
        saved = torch.load(directory / MEANS, map_location=where)
        if self.args.process_index > 0:  # they are sums over all processes
            saved = tuple({name: 0 * value for name, value in part.items()} for part in saved)
        self._sums, self._weights = saved

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the Trainer's estimate does not know packed batches."""
        return 0


class PDPOTrainer(PairTrainer):
    """Trains the LoRA adapter and the user model of a `PersonalizedLM` by P-DPO.

    Args:
        model: adapter and user model trainable, everything else frozen.
        objective: the loss and its weights.
        options: as `PairTrainer` takes them.
    """

    def __init__(self, model: PersonalizedLM, *, objective: Objective, **options: Any) -> None:
        super().__init__(model, alpha=objective.alpha, **options)
        self.objective = objective

    def pair_losses(self, model: nn.Module, batch: PairBatch) -> PairLosses:
        return pair_losses(model, batch, self.objective)

    def load_model(self, directory: Path) -> None:
        load_trained(cast(PersonalizedLM, self.model), directory)


def load_trained(model: PersonalizedLM, directory: Path) -> None:
    """Load adapter and user model of a checkpoint into a model of the same make, trainable."""
    from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

    assert (directory / CARD).is_file()
    assert (directory / TABLES).is_file()
    if isinstance(model.lm, PeftModel):
        set_peft_model_state_dict(model.lm, load_peft_weights(str(directory), device="cpu"))
    model.user_model.load_state_dict(load_user_model(directory).state_dict())

"""Training on preferences with `transformers.Trainer`: loss, optimiser, logs, checkpoints.

Everything that does not depend on the loss is in `PreferenceTrainer`, which reward models
(`prlhf.rewards.training`) use as well.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, cast

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainingArguments,
)

from prlhf.infra import distributed
from prlhf.infra.io import discard, naming
from prlhf.infra.kept import KeptWork, Pace
from prlhf.models.packing import Packed, Row
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.user_model import UserModel, load_user_model
from prlhf.params import OptimizerParams, RewardTrainParams, TrainParams
from prlhf.training.callbacks import SaveInTime, mark_complete
from prlhf.training.dataset import (
    PreferenceBatch,
    PreferenceCollator,
    PreferenceExample,
    lengths_of,
    users_of,
)
from prlhf.training.losses import PairLosses, pdpo_loss
from prlhf.training.optim import build_optimizer, clip_gradients
from prlhf.training.order import PreferenceSampler, VisitedExamples

MEANS: Final = "running_means.pt"

VALIDATION: Final = "validation"
"""The directory beside the checkpoints in which a validation keeps its work."""


class PreferenceModel(Protocol):
    """What is trained: a `PersonalizedLM`, or a model on top of one."""

    @property
    def user_model(self) -> UserModel:
        """User indices to embeddings."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def pack(self, rows: Sequence[Row]) -> Packed:
        """Rows as one batch."""

    def save_pretrained(self, directory: Path) -> None:
        """Write what is trained to an existing directory."""


def conditions(model: PreferenceModel, alpha: float) -> tuple[bool, bool]:
    """Which of (own user, generic user) have to be computed.

    Where all users have the same tokens, or none, both conditions are the same computation, so that
    one is enough.
    """
    if model.user_model.tokens == 0 or not model.user_model.tells_apart:
        return False, True
    return alpha > 0, alpha < 1


class PreferenceTrainer(Trainer, ABC):
    """Trains an adapter, a user model and any head on top of them on preference pairs.

    The loss of a step is the weighted mean over all its pairs, however they are split into
    micro-batches and processes, so gradient accumulation equals one large batch. A subclass defines
    the loss (`pair_losses`), and what a model has besides a `PersonalizedLM` (`lm`, `load_model`).

    Args:
        model: adapter and user model trainable, the base model frozen.
        objective: what is minimised; a term to which its `alpha` gives no weight is not computed.
        settings: how it is minimised, as far as `arguments` do not say it.
        arguments: Hugging Face training arguments; a device batch is counted in pairs, and the
            learning rate is the adapter's.
        train_pairs, eval_pairs: what to learn from, and a fixed sample to watch.
        callbacks: called as by `Trainer`, whose own printing and progress bars are switched off.
        pace: when there is to be a checkpoint, apart from those that `arguments` ask for.
    """

    control: TrainerControl
    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: PreferenceModel,
        objective: TrainParams | RewardTrainParams,
        settings: OptimizerParams,
        *,
        arguments: TrainingArguments,
        train_pairs: Sequence[PreferenceExample],
        eval_pairs: Sequence[PreferenceExample],
        callbacks: Sequence[TrainerCallback] = (),
        pace: Pace | None = None,
    ) -> None:
        self.objective = objective
        self.settings = settings
        as_user, as_generic = conditions(model, objective.alpha)
        self.pace = pace or Pace()
        # With a single term there is nothing to draw.
        draws = settings.term_sampling and as_user and as_generic
        self.drawn_with = objective.alpha if draws else None
        super().__init__(
            model=cast(nn.Module, model),
            args=arguments,
            data_collator=PreferenceCollator(model.pack, as_user, as_generic),
            train_dataset=cast(Any, VisitedExamples(train_pairs)),
            eval_dataset=cast(Any, list(eval_pairs)),
            callbacks=[*callbacks, SaveInTime(self.pace)],
        )
        # Tells the Trainer that the loss is already normalised over the accumulated batches.
        self.model_accepts_loss_kwargs = True
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._saved = self._sums, self._weights
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)

    @property
    def lm(self) -> PersonalizedLM:
        """The language model in what is trained."""
        return cast(PersonalizedLM, self.model)

    # -- data ------------------------------------------------------------------------------------

    def sampler(self) -> PreferenceSampler:
        """The order in which the training pairs are visited."""
        pairs = cast(VisitedExamples, self.train_dataset).examples
        seed, size = self.args.data_seed, self.args.train_batch_size
        return PreferenceSampler(
            users_of(pairs),
            seed=self.args.seed if seed is None else seed,
            # Asked at the start of an epoch, or in the middle of one when a run is resumed.
            epoch=lambda: int(self.state.epoch or 0),
            balance=self.settings.user_balance,
            alpha=self.drawn_with,
            lengths=lengths_of(pairs) if self.settings.length_bucketing else None,
            batch=size,
            whole=size * self.args.world_size if self.args.world_size > 1 else 1,
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> PreferenceSampler:
        return self.sampler()

    # -- loss ------------------------------------------------------------------------------------

    @abstractmethod
    def pair_losses(self, model: nn.Module, batch: PreferenceBatch) -> PairLosses:
        """The loss of each pair of a batch on the model's device."""

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
        """Add to the running sums, which stay on the device until the next log reads them."""
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
        both = torch.stack([part[name] for part in (self._sums, self._weights) for name in names])
        distributed.all_reduce_sum_(both)
        sums, weights = both.chunk(2)
        return dict(zip(names, sums, strict=True)), dict(zip(names, weights, strict=True))

    def _take_means(self) -> dict[str, float]:
        """Means so far, without metrics that are known of no pair; resets them."""
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
        training = self.model.training
        self.model.eval()
        work = self._validation_work() if eval_dataset is None else None
        # The weights are those of this step, also in a run that was killed here and got here again.
        process = f"{self.args.process_index}-of-{self.args.world_size}"
        key = f"step-{self.state.global_step}-{process}"
        done, self._sums, self._weights = _load_sums(work, key, self.args.device)
        try:
            for batch in self._eval_batches(pairs, done):
                moved = batch.to(self.args.device)
                self._record(self.pair_losses(self.model, moved), moved.weight)
                done += 1
                if work is not None and work.pace.due():
                    _save_sums(work, key, done, self._sums, self._weights)
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

    def _validation_work(self) -> KeptWork | None:
        """Where a validation that takes long is kept; None where it is not.

        Processes that share a model's parts have to do the same, however far each had come.
        """
        if distributed.sharded():
            return None
        return KeptWork(Path(cast(str, self.args.output_dir)) / VALIDATION, self.pace)

    def _eval_batches(
        self, pairs: Sequence[PreferenceExample], done: int
    ) -> Iterator[PreferenceBatch]:
        # Not through a DataLoader, which would draw from the random state that dropout uses.
        size = self.args.per_device_eval_batch_size
        processes, own = self.args.world_size, self.args.process_index
        if processes > 1:
            fillers = -len(pairs) % (size * processes)
            pairs = [*pairs, *[pairs[0].without_weight()] * fillers]
        for start in range((own + done * processes) * size, len(pairs), size * processes):
            yield self.data_collator(pairs[start : start + size])["batch"]

    # -- processes -------------------------------------------------------------------------------

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        if self.args.world_size == 1 or not training or model is not self.model:
            return super()._wrap_model(model, training, dataloader)
        return distributed.replicate(model, apart=self.lm.user_model.sparse_parameters())

    # -- optimiser -------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            users = self.lm.user_model
            theirs = {id(p) for p in users.parameters()}
            self.optimizer = build_optimizer(
                [p for p in self.model.parameters() if id(p) not in theirs],
                users,
                lora_lr=self.args.learning_rate,
                user_lr=self.settings.user_lr * self.lm.base.embedding_std,
                weights_lr=self.settings.weights_lr,
                weight_decay=self.args.weight_decay,
            )
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        distributed.average_rows(self.lm.user_model.sparse_parameters())
        return clip_gradients(model.parameters(), self.args.max_grad_norm)

    # -- checkpoints -----------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._saved = self._totals()
        output = Path(cast(str, self.args.output_dir))
        with self.pace.keeping(), naming(output):
            super()._save_checkpoint(model, trial)
            # Every process writes the state of its random numbers.
            distributed.barrier()
            if distributed.is_main():
                mark_complete(output / f"checkpoint-{self.state.global_step}")
                # What a validation came to is in the checkpoint.
                discard(output / VALIDATION)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Save what is trained (the base model never changes), and the means in progress."""
        if not self.args.should_save:
            return
        directory = Path(output_dir or cast(str, self.args.output_dir))
        directory.mkdir(parents=True, exist_ok=True)
        cast(PreferenceModel, self.model).save_pretrained(directory)
        torch.save(self._saved, directory / MEANS)

    def load_model(self, directory: Path) -> None:
        """Load what `save_pretrained` wrote to a checkpoint into the model, trainable."""
        if isinstance(self.lm.lm, PeftModel):
            set_peft_model_state_dict(self.lm.lm, load_peft_weights(str(directory), device="cpu"))
        self.lm.user_model.load_state_dict(load_user_model(directory).state_dict())

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        directory = Path(resume_from_checkpoint)
        self.load_model(directory)
        # So that a run resumed between two logs logs the same as an uninterrupted one. In several
        # processes on a CPU the device has a number, which torch cannot load to.
        where = "cpu" if self.args.device.type == "cpu" else self.args.device
        saved = torch.load(directory / MEANS, map_location=where)
        if self.args.process_index > 0:  # they are sums over all processes
            saved = tuple({name: 0 * value for name, value in part.items()} for part in saved)
        self._sums, self._weights = saved

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the Trainer's estimate does not know packed batches."""
        return 0


Sums = dict[str, Tensor]


def _save_sums(work: KeptWork, key: str, done: int, sums: Sums, weights: Sums) -> None:
    parts = {"sum": sums, "weight": weights}
    tensors = {f"{part}.{name}": x for part, of in parts.items() for name, x in of.items()}
    work.save(key, tensors, {"done": done, "names": list(sums)})


def _load_sums(work: KeptWork | None, key: str, device: torch.device) -> tuple[int, Sums, Sums]:
    """How many batches are done, and the sums over them; none if nothing is kept."""
    kept = None if work is None else work.load(key)
    if kept is None:
        return 0, {}, {}
    tensors, about = kept
    sums, weights = (
        {name: tensors[f"{part}.{name}"].to(device) for name in about["names"]}
        for part in ("sum", "weight")
    )
    return about["done"], sums, weights


class PDPOTrainer(PreferenceTrainer):
    """Trains the LoRA adapter and the user model of a `PersonalizedLM` by P-DPO."""

    objective: TrainParams

    def pair_losses(self, model: nn.Module, batch: PreferenceBatch) -> PairLosses:
        return pdpo_loss(model, batch, self.objective)

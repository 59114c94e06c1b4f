"""The same P-DPO step, done in different ways: ours, ours without one technique, and plainly.

Each variant is a `transformers.Trainer`, measured in its own training loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from benchmarks.models import adapted
from benchmarks.workload import USER_TOKENS, USERS, Workload
from prlhf.models.base import BaseModel, Encoder
from prlhf.models.logps import sum_by_owner, token_logps
from prlhf.models.packing import Packed, Row, attention_mask, hidden_states, pack
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.scores import Scores
from prlhf.models.user_model import IndividualUserModel
from prlhf.params import OptimizerParams, TrainParams
from prlhf.training.dataset import PreferenceBatch, PreferenceCollator, PreferenceExample
from prlhf.training.losses import PairLosses, pdpo_loss
from prlhf.training.order import VisitedExamples
from prlhf.training.trainer import PDPOTrainer

BETA = 0.1
OBJECTIVE = TrainParams(
    alpha=0.5,
    beta=BETA,
    loss="sigmoid",
    label_smoothing=0.0,
    nll_coef=0.0,
    dpop_coef=0.0,
    trust_pairs=None,
    start_from="models/base",
)
"""P-DPO as in the paper, without the terms that guard the language."""

FROZEN = 1e-12
"""A learning rate below float32's resolution: steps cost what they cost, and change nothing."""


def optimizer(user_lr: float) -> OptimizerParams:
    """What the trainer reads of the section `optimizer`; its `TrainingArguments` say the rest."""
    rates = {"user_lr": user_lr, "weights_lr": user_lr}
    order = {"user_balance": 0.0, "term_sampling": False, "length_bucketing": False}
    return OptimizerParams.model_construct(**cast(Any, rates | order))


@dataclass(frozen=True)
class Variant:
    """A way to do the step.

    Attributes:
        key, name: in the JSON, and for people.
        trainer: does the work; its data set is the workload.
        rows: items of the trainer's data set that stand for one pair.
    """

    key: str
    name: str
    trainer: Trainer
    rows: int = 1

    def loss_and_gradient(self, pairs: int, start: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """Of `pairs` pairs from `start` on, in one batch: the loss, its slope by parameter."""
        trainer = self.trainer
        items = range(start * self.rows, (start + pairs) * self.rows)
        data = items_of(trainer)
        examples = [data[i] for i in items]
        model = cast(nn.Module, trainer.model).train()
        inputs = trainer._prepare_inputs(trainer.data_collator(examples))
        loss = trainer.compute_loss(model, inputs)
        loss.backward()
        slopes = {
            name: parameter.grad.detach().to_dense().float().clone()
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }
        model.zero_grad()
        return loss.detach().float(), slopes


def items_of(trainer: Trainer) -> Any:
    """What a trainer is trained on, by position: pairs of ours, rows of TRL's."""
    data = cast(Any, trainer.train_dataset)
    return data.examples if isinstance(data, VisitedExamples) else data


def settings(device: torch.device, batch: int, output: Path) -> dict[str, Any]:
    """Training arguments that every variant shares; `batch` counts the trainer's own items."""
    return {
        "output_dir": str(output),
        "per_device_train_batch_size": batch,
        "num_train_epochs": 1,
        "learning_rate": FROZEN,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "train_sampling_strategy": "sequential",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "use_cpu": device.type == "cpu",
    }


def personalised(base: BaseModel, workload: Workload, encoder: Encoder) -> PersonalizedLM:
    """A model whose users are embeddings of the workload's plain tokens."""
    names = [f"user {i}" for i in range(USERS)]
    users = IndividualUserModel(names, USER_TOKENS, base.hidden_size, clusters=0)
    with torch.no_grad():
        ids = workload.user_tokens.to(base.device)
        embeddings = base.model.get_input_embeddings()(ids).float().cpu()
        users.shared.copy_(embeddings[0])
        users.offsets.weight[1:] = (embeddings[1:] - embeddings[0]).flatten(1)
    return PersonalizedLM(base, adapted(base), users, encoder)


def our_variants(
    base: BaseModel, workload: Workload, encoder: Encoder, batch: int, output: Path
) -> list[Variant]:
    """Ours, ours with each technique switched off, and the plain formulation."""
    lm = personalised(base, workload, encoder)

    def variant(
        key: str, name: str, *, share: bool = True, full: bool = False, reference: bool = False
    ) -> Variant:
        trainer = _Trainer(
            lm,
            OBJECTIVE,
            optimizer(user_lr=FROZEN),
            arguments=TrainingArguments(**settings(base.device, batch, output)),
            train_pairs=workload.pairs,
            eval_pairs=[],
        )
        trainer.full_logits = full
        trainer.data_collator = _Collator(
            lm.pack if share else _apart(USER_TOKENS), True, True, reference, share
        )
        return Variant(key, name, trainer)

    return [
        variant("ours", "prlhf"),
        variant("unshared", "without prompt sharing", share=False),
        variant("full_logits", "with full logits", full=True),
        variant("reference", "with the reference in every step", reference=True),
        variant("plain", "plain", share=False, full=True, reference=True),
    ]


def _apart(user_tokens: int) -> Callable[[Sequence[Row]], Packed]:
    return lambda rows: pack([part for row in rows for part in row.split()], user_tokens)


@dataclass(frozen=True)
class _ReferencedBatch(PreferenceBatch):
    """A batch that also holds the rows of its reference pass."""

    reference: Packed | None = None

    def to(self, device: torch.device | str, non_blocking: bool = True) -> PreferenceBatch:
        moved = super().to(device, non_blocking)
        reference = None if self.reference is None else self.reference.to(device)
        return replace(cast(_ReferencedBatch, moved), reference=reference)


@dataclass(frozen=True)
class _Collator(PreferenceCollator):
    """With the rows of the reference pass, once a pair, or once a row where nothing is shared."""

    reference: bool = False
    share: bool = True

    def __call__(self, pairs: Sequence[PreferenceExample]) -> dict[str, Any]:
        batch = super().__call__(pairs)["batch"]
        rows = [pair.row(0) for pair in pairs]
        if not self.share:
            rows = [part for row in rows + rows for part in row.split()]
        plain = {field.name: getattr(batch, field.name) for field in fields(batch)}
        reference = pack(rows, 0) if self.reference else None
        return {"batch": _ReferencedBatch(**plain, reference=reference)}


class _Trainer(PDPOTrainer):
    """P-DPO with techniques switched off."""

    full_logits = False

    def pair_losses(self, model: nn.Module, batch: PreferenceBatch) -> PairLosses:
        lm = cast(PersonalizedLM, model)
        policy = cast(nn.Module, _FullLogits(lm)) if self.full_logits else lm
        rows = cast(_ReferencedBatch, batch).reference
        if rows is not None:
            batch = self._referenced(lm, batch, rows)
        return pdpo_loss(policy, batch, self.objective)

    def _referenced(
        self, lm: PersonalizedLM, batch: PreferenceBatch, rows: Packed
    ) -> PreferenceBatch:
        with torch.no_grad(), cast(Any, lm.lm).disable_adapter():
            score = full_logps if self.full_logits else our_logps
            logps = score(lm, rows, lm.causal_lm.get_input_embeddings()(rows.input_ids))
        chosen, rejected = logps.view(-1, len(batch), 2)[0].unbind(-1)
        return replace(batch, ref_chosen=chosen, ref_rejected=rejected)


class _FullLogits:
    """Stands for the model, and computes the logits of every position, `[B, L, V]`."""

    def __init__(self, lm: PersonalizedLM) -> None:
        self.lm = lm

    def __call__(self, batch: Packed, *, users: Tensor | None = None) -> Scores:
        model = self.lm.user_model
        embeds = self.lm.causal_lm.get_input_embeddings()(batch.input_ids)
        prefix = model(batch.user_index).to(embeds.dtype)
        embeds = torch.cat([prefix, embeds[:, model.tokens :]], dim=1)
        logps = full_logps(self.lm, batch, embeds)
        penalty = None if users is None else model.penalty(users)
        return Scores(logps, batch.tokens, penalty=penalty)


def full_logps(lm: PersonalizedLM, batch: Packed, embeds: Tensor) -> Tensor:
    """log pi of each response, [R], by a softmax over the logits of every position."""
    logits = lm.causal_lm(
        inputs_embeds=embeds,
        attention_mask=attention_mask(batch, embeds.dtype),
        position_ids=batch.positions,
        use_cache=False,
    ).logits
    logps = torch.log_softmax(logits.float(), dim=-1).flatten(0, 1)
    per_token = logps[batch.predictors, batch.targets]
    return sum_by_owner(per_token, batch.owners, len(batch.tokens))


def our_logps(lm: PersonalizedLM, batch: Packed, embeds: Tensor) -> Tensor:
    """log pi of each response, [R], as `PersonalizedLM.forward` computes it."""
    model = lm.causal_lm
    hidden = hidden_states(model, embeds, batch).flatten(0, 1)
    per_token = token_logps(
        hidden[batch.predictors], cast(nn.Module, model.get_output_embeddings()), batch.targets
    )
    return sum_by_owner(per_token, batch.owners, len(batch.tokens))

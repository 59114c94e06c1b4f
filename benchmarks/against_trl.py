"""TRL's `DPOTrainer` on the same pairs: each twice, behind plain tokens that stand for the user."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset, disable_progress_bars
from torch import nn
from transformers import PrinterCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from benchmarks.models import adapted, twin
from benchmarks.variants import BETA, Variant, settings
from benchmarks.workload import Workload
from prlhf.models.base import BaseModel


class _DPOTrainer(DPOTrainer):
    """Takes token ids and reference log-probabilities as they are; the training is TRL's own."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset


def trl_variant(base: BaseModel, workload: Workload, batch: int, output: Path) -> Variant:
    """DPO over users and generic user, with TRL's own fused head and precomputed reference.

    With `alpha` one half, the mean over a pair and its twin of the generic user is P-DPO. Gradient
    checkpointing is off, as in all variants. What TRL's documentation advises beyond that needs a
    GPU and kernels from a hub.
    """
    disable_progress_bars()
    ours = adapted(base)
    with warnings.catch_warnings():
        # TRL names arguments that transformers is about to rename, and PEFT the base model anew.
        warnings.simplefilter("ignore")
        trainer = _DPOTrainer(
            model=twin(base.model),
            peft_config=ours.peft_config["default"],
            args=DPOConfig(
                **settings(base.device, 2 * batch, output),
                beta=BETA,
                precompute_ref_log_probs=True,
                gradient_checkpointing=False,
                max_length=None,
                bf16=base.model.dtype == torch.bfloat16,
            ),
            train_dataset=Dataset.from_list(_rows(workload, batch)),
            processing_class=base.tokenizer,
        )
    trainer.remove_callback(PrinterCallback)
    weights = {name: p for name, p in ours.named_parameters() if "lora_" in name}
    with torch.no_grad():
        for name, parameter in cast(nn.Module, trainer.model).named_parameters():
            if "lora_" in name:
                parameter.copy_(weights[name])
    return Variant("trl", "TRL", trainer, rows=2)


def _rows(workload: Workload, batch: int) -> list[dict[str, Any]]:
    """Pairs as TRL tokenises them; in each batch as their users first, then as the generic one."""
    rows = []
    for start in range(0, len(workload.pairs), batch):
        part = workload.pairs[start : start + batch]
        for user_of in ((lambda pair: pair.user_index), (lambda pair: 0)):
            rows += [
                {
                    "prompt_ids": [*workload.user_tokens[user_of(pair)].tolist(), *pair.prompt],
                    "chosen_ids": pair.chosen,
                    "rejected_ids": pair.rejected,
                    "ref_chosen_logps": pair.ref_chosen,
                    "ref_rejected_logps": pair.ref_rejected,
                }
                for pair in part
            ]
    return rows

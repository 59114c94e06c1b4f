"""LoRA adapters on whichever layers a model really has."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prlhf.errors import UserError
from prlhf.models.user_model import ONE_ADAPTER

# Names that attention projections go by in the architectures of transformers.
ATTENTION = frozenset(
    (
        *("q_proj", "k_proj", "v_proj", "o_proj", "out_proj"),
        *("qkv_proj", "query_key_value", "c_attn", "Wqkv"),
        *("query", "key", "value"),
    )
)


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Last parts of the names of all adaptable layers, the output head excepted, sorted."""
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
        }
    )


def find_targets(
    model: PreTrainedModel, targets: str | Sequence[str], where: str = "train.lora.targets"
) -> list[str]:
    """Names of the layers to adapt, all of which exist in the model.

    Args:
        model: the base model.
        targets: `auto` (attention projections), `all` (every linear layer but the output head) or
            names of layers.
        where: the key that says so, for errors.

    Raises:
        UserError: a name matches no layer, or `auto` finds none.
    """
    present = linear_layers(model)
    listing = f"this {model.config.model_type} model has {', '.join(present) or 'none'}"
    if not present:
        raise UserError(f"no layer can be adapted; {listing}", where=where)
    if targets == "all":
        return present
    if targets == "auto":
        found = sorted(ATTENTION.intersection(present))
        if not found:
            raise UserError(
                f"no attention projection with a known name; {listing}",
                where=where,
                fix="name the layers to adapt",
            )
        return found
    named = [targets] if isinstance(targets, str) else list(targets)
    for name in named:
        if name not in present:
            close = difflib.get_close_matches(name, present, n=1)
            hint = f"did you mean {close[0]}?" if close else "use auto, all or some of these"
            raise UserError(f"no layer is called {name!r}; {listing}", where=where, fix=hint)
    return named


def add_lora(
    model: PreTrainedModel,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    targets: str | Sequence[str],
    base_name: str,
    seed: int,
    where: str = "train.lora.targets",
) -> PeftModel:
    """Wrap the model with fresh LoRA adapters (which start as the identity), float32, trainable.

    Raises:
        UserError: `targets` match no layer.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=cast(int, alpha),
        lora_dropout=dropout,
        target_modules=find_targets(model, targets, where),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, config, autocast_adapter_dtype=True)
    saved = cast(LoraConfig, wrapped.peft_config["default"])
    # PEFT takes the name from the loaded model, which would be a path of this machine.
    saved.base_model_name_or_path = base_name
    # PEFT holds a set, and would write it in an order that differs from process to process.
    saved.target_modules = sorted(saved.target_modules or ())
    return cast(PeftModel, wrapped)


def save_adapters(model: PeftModel, directory: Path) -> None:
    """Write every adapter in PEFT's own format, where `adapter_path` says."""
    # Whether to save embeddings too is otherwise asked of the hub; LoRA leaves them alone.
    model.save_pretrained(str(directory), save_embedding_layers=False)
    # PEFT adds a model-card template with nothing in it.
    (directory / "README.md").unlink(missing_ok=True)


def adapter_path(directory: Path, name: str) -> Path:
    """Where PEFT keeps an adapter of a saved model: the only one on top, named ones below."""
    return directory if name == ONE_ADAPTER else directory / name


def load_adapters(
    model: PreTrainedModel, directory: Path, names: Sequence[str]
) -> PreTrainedModel | PeftModel:
    """The model with the adapters of a model directory; without any, the model itself.

    Raises:
        UserError: an adapter besides the only one is missing.
    """
    wrapped: PeftModel | None = None
    for name in names:
        path = adapter_path(directory, name)
        if not (path / "adapter_config.json").is_file():
            # PEFT would go on to look for it on the hub.
            if name == ONE_ADAPTER:
                return model
            raise UserError("no adapter here", where=path, fix="train the method again")
        if wrapped is None:
            wrapped = PeftModel.from_pretrained(model, str(path), adapter_name=name)
        else:
            wrapped.load_adapter(str(path), name)
    return model if wrapped is None else wrapped

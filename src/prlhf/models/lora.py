"""LoRA adapters on the layers that a model really has."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prlhf.infra.errors import UserError
from prlhf.models.user_model import ONE_ADAPTER
from prlhf.params import LoraParams

ATTENTION: Final = frozenset(
    (
        *("q_proj", "k_proj", "v_proj", "o_proj", "out_proj"),
        *("qkv_proj", "query_key_value", "c_attn", "Wqkv"),
        *("query", "key", "value"),
    )
)
"""Names of attention projections in the architectures of transformers."""

WHERE: Final = "optimizer.lora.targets"


def linear_layers(model: PreTrainedModel) -> list[str]:
    """The distinct last parts of the names of all linear layers but the output head, sorted."""
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
        }
    )


def find_targets(model: PreTrainedModel, targets: str | Sequence[str]) -> list[str]:
    """Names of the layers to adapt, all of which exist in the model.

    Args:
        model: the base model.
        targets: `auto` (attention projections), `all` (every linear layer but the output head) or
            names of layers.

    Raises:
        UserError: a name matches no layer, or `auto` finds none.
    """
    present = linear_layers(model)
    listing = f"this {model.config.model_type} model has {', '.join(present) or 'none'}"
    if not present:
        raise UserError(f"no layer can be adapted; {listing}", where=WHERE)
    if targets == "all":
        return present
    if targets == "auto":
        found = sorted(ATTENTION.intersection(present))
        if not found:
            problem = f"no attention projection with a known name; {listing}"
            raise UserError(problem, where=WHERE, fix="name the layers to adapt")
        return found
    named = [targets] if isinstance(targets, str) else list(targets)
    for name in named:
        if name not in present:
            close = difflib.get_close_matches(name, present, n=1)
            hint = f"did you mean {close[0]}?" if close else "use auto, all or some of these"
            raise UserError(f"no layer is called {name!r}; {listing}", where=WHERE, fix=hint)
    return named


def add_lora(model: PreTrainedModel, lora: LoraParams, *, base_name: str, seed: int) -> PeftModel:
    """Insert a new, trainable adapter into the model: float32, initially the identity.

    Args:
        model: the base model.
        lora: `optimizer.lora` of params.yaml.
        base_name: the base model's name, for the adapter's configuration.
        seed: of the adapter's first values.

    Raises:
        UserError: the targets match no layer.
    """
    config = LoraConfig(
        r=lora.r,
        lora_alpha=cast(int, lora.alpha),
        lora_dropout=lora.dropout,
        target_modules=find_targets(model, lora.targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, config, autocast_adapter_dtype=True)
    # PEFT takes the name from the loaded model, which would be a path of this machine.
    wrapped.peft_config["default"].base_model_name_or_path = base_name
    return cast(PeftModel, wrapped)


def save_adapters(model: PeftModel, directory: Path) -> None:
    """Write every adapter in PEFT's own format, where `adapter_path` says."""
    for config in model.peft_config.values():
        # PEFT holds a set, and would write it in an order that differs from process to process.
        saved = cast(LoraConfig, config)
        saved.target_modules = sorted(saved.target_modules or ())
    # PEFT would otherwise ask the hub whether to save embeddings, which LoRA does not change.
    model.save_pretrained(str(directory), save_embedding_layers=False)
    # PEFT writes an empty template of a model card.
    (directory / "README.md").unlink(missing_ok=True)


def adapter_path(directory: Path, name: str) -> Path:
    """Where PEFT keeps an adapter of a saved model: the only one on top, others one level below."""
    return directory if name == ONE_ADAPTER else directory / name


def load_adapters(
    model: PreTrainedModel, directory: Path, names: Sequence[str]
) -> PreTrainedModel | PeftModel:
    """The model with the adapters of a model directory, or the model itself if there is none.

    Raises:
        UserError: one of several adapters is missing.
    """
    wrapped: PeftModel | None = None
    for name in names:
        path = adapter_path(directory, name)
        if not (path / "adapter_config.json").is_file():
            # Checked here because PEFT would look for it on the hub.
            if name == ONE_ADAPTER:
                return model
            raise UserError("no adapter here", where=path, fix="train the method again")
        if wrapped is None:
            wrapped = PeftModel.from_pretrained(model, str(path), adapter_name=name)
        else:
            wrapped.load_adapter(str(path), name)
    return model if wrapped is None else wrapped

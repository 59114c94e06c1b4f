"""What is measured on: a model directory, or random weights of a real shape."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from prlhf.infra.errors import UserError
from prlhf.infra.progress import quiet_transformers
from prlhf.models.base import BaseModel, load_base, pick_device, pick_dtype
from prlhf.models.conventions import chat_tokenizer
from prlhf.models.lora import add_lora
from prlhf.params import LoraParams

RANDOM = "random:"

SHAPES: dict[str, dict[str, Any]] = {
    # For the tests, and for what must not be drowned by the language model's own cost.
    "tiny": {"hidden_size": 32, "layers": 2, "heads": (4, 2), "mlp": 64, "vocabulary": 258},
    "narrow": {"hidden_size": 576, "layers": 2, "heads": (9, 3), "mlp": 1536, "vocabulary": 1024},
    # Real shapes.
    "smollm2-135m": {
        "hidden_size": 576,
        "layers": 30,
        "heads": (9, 3),
        "mlp": 1536,
        "vocabulary": 49152,
        "tied": True,
    },
    "llama-1b": {
        "hidden_size": 2048,
        "layers": 16,
        "heads": (32, 8),
        "mlp": 8192,
        "vocabulary": 128256,
        "tied": True,
    },
    "llama-8b": {
        "hidden_size": 4096,
        "layers": 32,
        "heads": (32, 8),
        "mlp": 14336,
        "vocabulary": 128256,
    },
}
"""Llamas by name. `heads` are those of queries and of keys."""

LORA = LoraParams(r=8, alpha=16.0, dropout=0.0, targets="auto")
"""The adapter of every measurement; `auto` are the attention projections."""


def load(spec: str, *, device: str | None = None, dtype: str = "auto") -> BaseModel:
    """A frozen model to measure on.

    Args:
        spec: a model directory, or `random:` and a name in `SHAPES`.
        device: as torch names it; None for CUDA where there is one, else the CPU.
        dtype: of the weights; see `model.dtype` in `params.yaml`.

    Raises:
        UserError: there is no such directory, shape or device.
    """
    if device is not None:
        os.environ["PRLHF_DEVICE"] = device
    if pick_device().type == "cuda" and not torch.cuda.is_available():
        raise UserError("this machine has no CUDA device", where="--device", fix="use cpu")
    if not spec.startswith(RANDOM):
        return load_base(Path(spec), dtype)
    name = spec.removeprefix(RANDOM)
    if name not in SHAPES:
        known = ", ".join(RANDOM + shape for shape in SHAPES)
        raise UserError(f"no shape is called {name!r}", where="--model", fix=f"use one of {known}")
    return _random(name, dtype)


def _random(name: str, dtype: str) -> BaseModel:
    quiet_transformers()
    shape = SHAPES[name]
    queries, keys = shape["heads"]
    config = LlamaConfig(
        vocab_size=shape["vocabulary"],
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["mlp"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=queries,
        num_key_value_heads=keys,
        max_position_embeddings=8192,
        tie_word_embeddings=shape.get("tied", False),
        # Outputs of a layer as large as its inputs, so that every position matters to the others.
        initializer_range=shape["hidden_size"] ** -0.5,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    device = pick_device()
    with torch.random.fork_rng(), device:
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=pick_dtype(dtype, device)
        )
    model.requires_grad_(False)
    chat = chat_tokenizer(_tokenizer())
    return BaseModel(model.eval().to(device), chat, Path(name), {"name": RANDOM + name})


def _tokenizer() -> PreTrainedTokenizerBase:
    """All data is token ids: a tokenizer is only asked for its end-of-sequence token."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<|end|>": 0}, unk_token="<|end|>")),
        eos_token="<|end|>",
        pad_token="<|end|>",
    )


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """Modules of their own around the same weights: an adapter on one is not seen by the other."""
    shared = {id(parameter): parameter for parameter in model.parameters()}
    return copy.deepcopy(model, shared)


def adapted(base: BaseModel) -> Any:
    """A twin of the base model behind an adapter that has left the identity."""
    model = add_lora(twin(base.model), LORA, base_name="base", seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.03 * torch.randn(parameter.shape, generator=generator))
    return model


def vocabulary_of(base: BaseModel) -> int:
    """Rows of the embedding table."""
    return int(base.model.get_input_embeddings().weight.shape[0])

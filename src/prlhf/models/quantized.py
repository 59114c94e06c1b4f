"""Base weights in 4 bits (QLoRA, arXiv:2305.14314): a quarter of the memory, adapters on top."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from prlhf.errors import UserError

NF4 = "nf4"
"""The value of `model.dtype` that asks for it."""


def nf4_options(device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is given to load weights as 4-bit NormalFloat, computed in bfloat16.

    The scales of the blocks are quantised as well (section 3). Embeddings and the output layer stay
    in bfloat16.

    Raises:
        UserError: there is no GPU, or bitsandbytes is not installed.
    """
    if device.type != "cuda":
        raise UserError(
            f"4-bit weights (nf4) need a CUDA GPU, and this runs on {device.type}",
            where="model.dtype",
            fix="use auto",
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "4-bit weights (nf4) need the package bitsandbytes",
            where="model.dtype",
            fix="pip install 'prlhf[qlora]', or use bfloat16",
        )
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
        # Weights are quantised on the device, layer by layer, and never whole in memory there.
        "device_map": {"": device},
    }

"""4-bit base weights: what is asked of the loader, and one clear error where they cannot be had."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import prlhf.models.base as base_module
from prlhf.infra.errors import UserError
from prlhf.models.base import NF4, load_base, nf4_options


def test_without_a_gpu(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRLHF_DEVICE", "cpu")
    with pytest.raises(UserError, match="need a CUDA GPU, and this runs on cpu") as caught:
        load_base(tiny_path, NF4)
    assert caught.value.where == "model.dtype"


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="need the package bitsandbytes") as caught:
        nf4_options(torch.device("cuda"))
    assert "prlhf[qlora]" in str(caught.value.fix)


def test_what_the_loader_is_asked_for(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    options = nf4_options(torch.device("cuda", 0))
    config = options["quantization_config"]
    assert config.load_in_4bit
    assert config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    assert options["device_map"] == {"": torch.device("cuda", 0)}

    asked: dict[str, Any] = {}
    original = base_module.AutoModelForCausalLM.from_pretrained

    def watched(path: Path, **given: Any) -> Any:
        asked.update(given)
        return original(path, **{k: v for k, v in given.items() if k not in options})

    monkeypatch.setenv("PRLHF_DEVICE", "cpu")
    monkeypatch.setattr(base_module, "nf4_options", lambda device: options)
    monkeypatch.setattr(base_module.AutoModelForCausalLM, "from_pretrained", watched)
    base = load_base(tiny_path, NF4)
    assert asked["quantization_config"] is config
    assert asked["dtype"] == torch.bfloat16
    assert base.model.get_input_embeddings().weight.dtype == torch.bfloat16
    asked.clear()
    load_base(tiny_path, "float32")
    assert not {"quantization_config", "device_map"} & asked.keys()

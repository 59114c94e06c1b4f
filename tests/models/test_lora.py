"""Adapters: on layers that exist, starting as the identity, the same for the same seed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from prlhf.infra.errors import UserError
from prlhf.models.lora import add_lora, find_targets, linear_layers, save_adapters
from prlhf.params import LoraParams
from tiny import tiny_llama

IDS = {"vocab_size": 258, "bos_token_id": 0, "eos_token_id": 1}


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(**IDS, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()


def opt() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64}
    return OPTForCausalLM(
        OPTConfig(**IDS, **sizes, max_position_embeddings=64, word_embed_proj_dim=32)
    )


def neox() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**IDS, **sizes, intermediate_size=64))


def adapted(model: PreTrainedModel, *, seed: int = 0, base_name: str = "tiny", **options):
    lora = LoraParams(**{"r": 2, "alpha": 4, "dropout": 0.0, "targets": "auto", **options})
    return add_lora(model, lora, base_name=base_name, seed=seed)


@pytest.mark.parametrize(
    ("make", "auto", "everything"),
    [
        (
            tiny_llama,
            ["k_proj", "o_proj", "q_proj", "v_proj"],
            ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
        ),
        (gpt2, ["c_attn"], ["c_attn", "c_fc", "c_proj"]),
        (
            opt,
            ["k_proj", "out_proj", "q_proj", "v_proj"],
            ["fc1", "fc2", "k_proj", "out_proj", "q_proj", "v_proj"],
        ),
        (
            neox,
            ["query_key_value"],
            ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"],
        ),
    ],
)
def test_targets_are_found_in_the_model(make, auto: list[str], everything: list[str]) -> None:
    model = make()
    assert find_targets(model, "auto") == auto
    assert find_targets(model, "all") == linear_layers(model) == everything
    ours = adapted(model)
    touched = {
        name.split(".lora_A")[0].rsplit(".", 1)[-1]
        for name, _ in ours.named_parameters()
        if ".lora_A" in name
    }
    assert sorted(touched) == auto


def test_named_targets_are_taken_as_they_are() -> None:
    assert find_targets(tiny_llama(), ["v_proj", "q_proj"]) == ["v_proj", "q_proj"]


def test_an_unknown_target_names_the_nearest_and_what_there_is() -> None:
    with pytest.raises(UserError) as caught:
        find_targets(tiny_llama(), ["q_proj", "k_prj"])
    message = str(caught.value)
    assert message.startswith("optimizer.lora.targets: no layer is called 'k_prj'")
    assert "did you mean k_proj?" in message
    assert "this llama model has down_proj, gate_proj, k_proj" in message


def test_a_target_like_none_lists_what_there_is() -> None:
    with pytest.raises(UserError) as caught:
        find_targets(gpt2(), ["Wqkv"])
    assert "this gpt2 model has c_attn, c_fc, c_proj" in str(caught.value)
    assert "auto, all or some of these" in str(caught.value)


def test_a_model_whose_attention_has_unknown_names() -> None:
    model = tiny_llama()
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer.self_attn, f"my_{name}", layer.self_attn._modules.pop(name))
    with pytest.raises(UserError) as caught:
        find_targets(model, "auto")
    message = str(caught.value)
    assert "no attention projection with a known name" in message
    assert "my_k_proj" in message


def test_a_model_without_any_layer() -> None:
    model = tiny_llama()
    model.model.layers = nn.ModuleList()
    for targets in ("auto", "all", ["q_proj"]):
        with pytest.raises(UserError, match="llama model has none"):
            find_targets(model, targets)


def test_fresh_adapters_change_nothing_and_only_they_are_trainable() -> None:
    model = tiny_llama()
    ids = torch.arange(10)[None]
    with torch.no_grad():
        before = model(ids).logits
    ours = adapted(model)
    trainable = [(n, p) for n, p in ours.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in trainable)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, before, rtol=0, atol=0)


def test_adapters_of_a_half_precision_model_are_float32() -> None:
    ours = adapted(tiny_llama().to(torch.bfloat16))
    assert {p.dtype for n, p in ours.named_parameters() if "lora_" in n} == {torch.float32}


def test_the_seed_alone_decides() -> None:
    def weights(seed: int, elsewhere: int) -> list[torch.Tensor]:
        model = tiny_llama()
        torch.manual_seed(elsewhere)
        state = torch.get_rng_state()
        ours = adapted(model, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        return [p.detach() for n, p in ours.named_parameters() if "lora_A" in n]

    first, second, other = weights(1, 10), weights(1, 20), weights(2, 10)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("make", [tiny_llama, gpt2])
def test_the_configuration_names_no_path_and_is_the_same_each_time(make, tmp_path: Path) -> None:
    model = make()
    model.config._name_or_path = "/home/somebody/model"
    ours = adapted(model, base_name="some-model", r=3, alpha=6.0, dropout=0.1)
    save_adapters(ours, tmp_path)
    text = (tmp_path / "adapter_config.json").read_text()
    assert "somebody" not in text
    saved = json.loads(text)
    assert saved["base_model_name_or_path"] == "some-model"
    assert saved["target_modules"] == find_targets(make(), "auto")
    assert (saved["r"], saved["lora_alpha"], saved["lora_dropout"]) == (3, 6.0, 0.1)
    assert saved["task_type"] == "CAUSAL_LM"


def test_layers_that_are_stored_transposed_raise_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ours = adapted(gpt2())
    assert ours.peft_config["default"].fan_in_fan_out

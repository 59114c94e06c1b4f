"""Language models small enough to be damaged often: random weights, byte-level tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
SHAPES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        **SPECIAL,
    ),
    "gpt2": GPT2Config(vocab_size=258, n_embd=32, n_layer=2, n_head=4, n_positions=1024, **SPECIAL),
}


def write_model(directory: Path, shape: str = "llama") -> Path:
    """A model directory as `model.name` takes it."""
    config = SHAPES[shape]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig(**SPECIAL)
    model.save_pretrained(directory)
    _tokenizer().save_pretrained(directory)
    return directory


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and <|start|>, <|end|>."""
    marks = ["<|start|>", "<|end|>"]
    symbols = [*marks, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=marks[0], eos_token=marks[1], pad_token=marks[1]
    )
    fast.chat_template = TEMPLATE
    return fast

"""A complete causal language model small enough for tests: random weights, byte-level tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def tiny_tokenizer(chat: bool = True) -> PreTrainedTokenizerBase:
    """One token a byte, and <|start|>, <|end|>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|start|>": 0, "<|end|>": 1}
    vocabulary |= {symbol: i for i, symbol in enumerate(alphabet, start=2)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|start|>", eos_token="<|end|>", pad_token="<|end|>"
    )
    if chat:
        fast.chat_template = TEMPLATE
    return fast


def tiny_llama(layers: int = 2, hidden: int = 32, seed: int = 0) -> PreTrainedModel:
    """A Llama with grouped key-value heads and tied embeddings."""
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def write_tiny_model(directory: Path, *, chat: bool = True) -> Path:
    """A model directory as `model.name` takes it."""
    directory.mkdir(parents=True, exist_ok=True)
    tiny_llama().save_pretrained(directory)
    tiny_tokenizer(chat).save_pretrained(directory)
    return directory

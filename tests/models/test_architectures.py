"""Whatever the architecture, scores and answers are the model's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import naive
from personal import enliven, gradients, personalise, random_user_model
from prlhf.data.prompts import canonical_prompt
from prlhf.generation import complete
from prlhf.infra.errors import UserError
from prlhf.models.base import BaseModel, Encoder, load_base, without_dropout
from prlhf.models.conventions import chat_tokenizer
from prlhf.models.packing import Row, takes_tree_mask
from prlhf.models.personalized import PersonalizedLM
from prlhf.sampling import decoding
from tiny import tiny_tokenizer

IDS: dict[str, Any] = {"vocab_size": 258, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
COMMON: dict[str, Any] = {
    **IDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GROUPED: dict[str, Any] = {**COMMON, "intermediate_size": 64, "num_key_value_heads": 2}
GPT2: dict[str, Any] = {**IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
WINDOW = 8


def opt() -> PreTrainedModel:
    sizes = {"ffn_dim": 64, "max_position_embeddings": 256, "word_embed_proj_dim": 32}
    return OPTForCausalLM(OPTConfig(**COMMON, **sizes))


def gpt_neo(*kinds: str) -> PreTrainedModel:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 256}
    layers = [[list(kinds), 1]]
    return GPTNeoForCausalLM(
        GPTNeoConfig(**IDS, **sizes, attention_types=layers, window_size=WINDOW)
    )


def qwen2(window: int | None) -> PreTrainedModel:
    options = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}
    return Qwen2ForCausalLM(Qwen2Config(**GROUPED, **(options if window else {})))


# How to make a model, and whether prompts can be shared among responses.
MODELS: dict[str, tuple[Callable[[], PreTrainedModel], bool]] = {
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)), True),
    "gpt-j": (
        lambda: GPTJForCausalLM(GPTJConfig(**GPT2, rotary_dim=4, tie_word_embeddings=False)),
        True,
    ),
    "gemma, tied": (lambda: GemmaForCausalLM(GemmaConfig(**GROUPED, head_dim=8)), True),
    "gpt2": (lambda: GPT2LMHeadModel(GPT2Config(**GPT2)), True),
    "opt": (opt, True),
    "qwen2": (lambda: qwen2(None), True),
    "qwen2, windows": (lambda: qwen2(WINDOW), False),
    "gpt-neox": (lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**COMMON, intermediate_size=64)), True),
    "mistral": (lambda: MistralForCausalLM(MistralConfig(**GROUPED)), True),
    "mistral, windows": (
        lambda: MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=WINDOW)),
        False,
    ),
    "gpt-neo": (lambda: gpt_neo("global", "global"), True),
    "gpt-neo, local": (lambda: gpt_neo("global", "local"), False),
    "gemma2, windows and softcap": (
        lambda: Gemma2ForCausalLM(Gemma2Config(**GROUPED, head_dim=8, sliding_window=WINDOW)),
        False,
    ),
    "bloom, alibi": (lambda: BloomForCausalLM(BloomConfig(**IDS, hidden_size=32, n_head=4)), False),
}

# What `optimizer.lora.targets: auto` adapts, where it is not this.
USUAL = ["k_proj", "o_proj", "q_proj", "v_proj"]
TARGETS: dict[str, list[str]] = {
    "gpt-j": ["k_proj", "out_proj", "q_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "opt": ["k_proj", "out_proj", "q_proj", "v_proj"],
    "gpt-neo": ["k_proj", "out_proj", "q_proj", "v_proj"],
    "gpt-neo, local": ["k_proj", "out_proj", "q_proj", "v_proj"],
    "gpt-neox": ["query_key_value"],
    "bloom, alibi": ["query_key_value"],
}

ROWS = [
    Row(1, list(range(40, 52)), [[60, 61, 62, 63, 64, 65, 66, 1], [70, 71, 1]]),
    Row(0, [33, 34], [[80, 81, 82, 83], [84]]),
]


@pytest.fixture(params=MODELS)
def architecture(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[BaseModel, bool]:
    """A base model as the pipeline loads it."""
    make, shares = MODELS[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = enliven(make())
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    monkeypatch.setenv("PRLHF_DEVICE", "cpu")
    return load_base(tmp_path, "float32"), shares


def test_scores_are_the_models_own(architecture: tuple[BaseModel, bool]) -> None:
    base, shares = architecture
    lm = personalise(base)
    assert lm.shares_prompts == shares
    got = lm.score(ROWS, label="test")
    embedding = naive.embedding_of(lm.user_model)
    with torch.no_grad():
        expected = torch.stack(
            [
                naive.response_logp(lm.lm, embedding(row.user_index), row.prompt, response)
                for row in ROWS
                for response in row.responses
            ]
        )
    torch.testing.assert_close(got.logps, expected, rtol=1e-4, atol=1e-3)


def test_answers_of_a_mixed_batch_are_the_models_own(
    architecture: tuple[BaseModel, bool],
) -> None:
    """Of users with tokens and texts, of strangers with and without one, padded on the left."""
    base, _ = architecture
    lm = personalise(base, max_user_text=16)
    users = [1, 0, 2, 0]
    texts = ["I am new.", "I know all", None, None]
    prompts = [canonical_prompt(text) for text in ("Why?", "How does it work?", "?", "Now?")]
    got = complete(
        lm,
        list(zip(users, prompts, strict=True)),
        texts,
        config=decoding(lm.encoder.chat.conventions.stops, max_new_tokens=6, temperature=0),
    )
    embedding, embed = naive.embedding_of(lm.user_model), base.model.get_input_embeddings()
    for user, text, prompt, completion in zip(users, texts, prompts, got, strict=True):
        said = lm.encoder.chat.text(f"{text}\n") if text else []
        known = [*said, *lm.encoder.prompt(prompt)]
        ids: list[int] = []
        with torch.no_grad():
            for _ in range(6):
                inputs = torch.cat([embedding(user), embed(torch.tensor([*known, *ids]))])
                ids.append(int(lm.lm(inputs_embeds=inputs[None]).logits[0, -1].argmax()))
        assert completion.ids == ids[: ids.index(1)] if 1 in ids else ids


def test_a_step_reaches_adapter_and_users(
    architecture: tuple[BaseModel, bool], request: pytest.FixtureRequest
) -> None:
    """And no weight of the base model, its head included."""
    base, _ = architecture
    lm = personalise(base, max_user_text=16)
    name = request.node.callspec.params["architecture"]
    adapted = {
        part.split(".lora_")[0].rpartition(".")[2]
        for part, _ in lm.lm.named_parameters()
        if ".lora_" in part
    }
    assert sorted(adapted) == TARGETS.get(name, USUAL)
    batch = lm.pack([Row(1, [33, 34], [[60, 61, 1], [70, 1]])])  # within any window
    found = gradients(lm.train(), lm(batch).logps.sum())
    assert all(part.startswith("user_model") or ".lora_" in part for part in found)
    assert all(slope.any() for slope in found.values())


def test_training_mode_of_the_base_model_changes_nothing(
    architecture: tuple[BaseModel, bool],
) -> None:
    """The policy must not differ from its reference by the base model's dropout."""
    base, _ = architecture
    ids = torch.arange(20, 30)[None]
    with torch.no_grad():
        quiet = base.model.eval()(ids).logits
        assert torch.equal(base.model.train()(ids).logits, quiet)


def test_dropout_is_there_before_it_is_switched_off() -> None:
    model = GPT2LMHeadModel(GPT2Config(**GPT2)).train()
    ids = torch.arange(20, 30)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)
    without_dropout(model)
    assert torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize(("longest", "shares"), [(WINDOW, True), (WINDOW + 1, False)])
def test_a_window_matters_only_to_texts_that_are_longer(longest: int, shares: bool) -> None:
    model = MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=WINDOW)).eval()
    assert takes_tree_mask(model, longest) == shares


def test_texts_longer_than_the_model_are_refused() -> None:
    base = BaseModel(opt().eval(), chat_tokenizer(tiny_tokenizer()), Path(), {})
    users = random_user_model("individual", base.hidden_size)
    lm = PersonalizedLM(base, base.model, users, Encoder(base.chat, 200, 54))
    ids = list(range(2, 202))
    row = Row(1, ids, [ids[:54], ids[:54]])
    assert lm.score([row], label="test").logps.isfinite().all(), "the last position, too"
    with pytest.raises(UserError, match="can take 257 tokens, and the model has 256 positions"):
        PersonalizedLM(base, base.model, users, Encoder(base.chat, 200, 55))


def test_recurrent_models_cannot_share_prompts() -> None:
    model = MambaForCausalLM(MambaConfig(**IDS, hidden_size=32, num_hidden_layers=2))
    assert not takes_tree_mask(model, 64)


def test_trying_leaves_the_mode_alone() -> None:
    model = qwen2(None)
    for training in (True, False):
        model.train(training)
        takes_tree_mask(model, 64)
        assert model.training == training

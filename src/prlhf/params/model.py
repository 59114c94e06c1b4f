"""The base model and how much text it is given."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prlhf.params.section import Section


class TokenizerParams(Section):
    """`model.tokenizer`: for models that were published without one, or without a chat template."""

    name: str | None = Field(
        min_length=1,
        description="Whose tokenizer to use: a hub id (`org/name`) or a local directory; null for "
        "the model's own.",
    )
    revision: str | None = Field(
        description="Commit hash or tag; required for a hub id. The commit it resolves to is "
        "recorded beside the model.",
    )
    chat_template: str | None = Field(
        min_length=1,
        description="How messages become a text, in Jinja, or the name of a form that is known "
        "(`tulu`); null for the tokenizer's own. Without any, prompts are read as they are, and "
        "messages one below the other.",
    )


class ModelParams(Section):
    """`model`: the frozen base language model."""

    name: str = Field(
        min_length=1,
        description="The base model: a built-in name (`smollm2-135m-instruct`), a hub id "
        "(`org/name`) or a local directory. A directory is read once: after changing what is in "
        "it, run `dvc repro -f base_model`.",
    )
    revision: str | None = Field(
        description="Commit hash or tag; required for a hub id. The commit it resolves to is "
        "recorded beside the model.",
    )
    tokenizer: TokenizerParams
    dtype: Literal["auto", "float32", "bfloat16", "float16", "nf4"] = Field(
        description="Precision of the frozen weights. `auto` is bfloat16 on CUDA and float32 on "
        "CPUs, where bfloat16 can be many times slower. `nf4` is 4 bits a weight, computed in "
        "bfloat16 (QLoRA); it needs CUDA and `pip install 'prlhf[qlora]'`.",
    )


class TokenParams(Section):
    """`tokens`: the longest texts, in tokens of the base model. Memory and time grow with them."""

    max_prompt: int = Field(
        ge=8,
        description="Most tokens of a prompt; a longer one loses its middle: exchanges between the "
        "first and the last, then the first, then words.",
    )
    max_response: int = Field(
        ge=2,
        description="Most tokens of a response, its end mark included; a longer one is cut at its "
        "end and carries no end mark.",
    )
    max_user_text: int = Field(
        ge=8,
        description="Most tokens of a user's text in front of the prompt; a longer one is cut at "
        "its end. Methods with `text: true` read it, and `prompted`.",
    )
    reference_text: bool = Field(
        description="Whether the reference model, too, reads the user's text where a method does. "
        "In the paper it sees the prompt only."
    )

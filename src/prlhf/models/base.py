"""A base model, any Hugging Face causal language model: loading it, and text to its tokens."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

import pandas as pd
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prlhf.data import clean_user_text
from prlhf.data.prompts import messages
from prlhf.infra import distributed
from prlhf.infra.errors import UserError, loading
from prlhf.infra.io import SOURCE
from prlhf.infra.progress import quiet_transformers
from prlhf.models.chat import ChatTokenizer, Conventions, Messages, RefusedPromptError
from prlhf.models.conventions import declared_stops, find_conventions
from prlhf.params import TokenParams

CONVENTIONS: Final = "conventions"
"""Where the record of a model's origin has its `Conventions`."""

NF4: Final = "nf4"
"""The `model.dtype` of 4-bit weights."""

DTYPES: Final = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    NF4: torch.bfloat16,  # of the computation
}


@dataclass(frozen=True)
class BaseModel:
    """A frozen base language model, its tokenizer with their conventions, and where it is from."""

    model: PreTrainedModel
    chat: ChatTokenizer
    path: Path
    source: dict[str, Any]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.chat.tokenizer

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def hidden_size(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[1])

    @torch.no_grad()
    def embed(self, ids: Sequence[int]) -> Tensor:
        """Word embeddings as the layers receive them, float32 [len(ids), d] on the CPU.

        Not rows of the table: Gemma scales them inside its embedding module.
        """
        embeddings = self.model.get_input_embeddings()
        found: Tensor = embeddings(torch.tensor(ids, device=self.device)).detach()
        return found.float().cpu()

    @cached_property
    def embedding_std(self) -> float:
        """Standard deviation of the entries of all word embeddings, as the layers receive them."""
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        count, total, squares = 0, 0.0, 0.0
        for start in range(0, vocabulary, 8192):  # all at once can be gigabytes
            part = self.embed(range(start, min(start + 8192, vocabulary))).double()
            count += part.numel()
            total += float(part.sum())
            squares += float(part.pow(2).sum())
        return math.sqrt((squares - total**2 / count) / (count - 1))


def load_base(path: Path, dtype: str = "auto") -> BaseModel:
    """Load the model in directory `path` (written by the `base_model` stage), frozen, in eval mode.

    Raises:
        UserError: the directory is missing or holds no causal language model, or `dtype` is not
            available here.
    """
    if not (path / "config.json").is_file():
        raise UserError("no base model here", where=path, fix="run `dvc repro base_model`")
    quiet_transformers()
    device = pick_device()
    options = nf4_options(device) if dtype == NF4 else {}
    with loading(
        "cannot be loaded as a causal language model",
        where=path,
        fix="check model.name, then run `dvc repro -f base_model`",
    ):
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        model = _load_weights(path, device, {"dtype": pick_dtype(dtype, device), **options})
    without_dropout(model)
    model.eval()
    source = read_source(path)
    if record := source.pop(CONVENTIONS, None):
        conventions = Conventions.from_record(record)
    else:
        stops = declared_stops(path, tokenizer)
        conventions = find_conventions(tokenizer, stops=stops, where=path)
    return BaseModel(model, ChatTokenizer(tokenizer, conventions), path, source)


def _load_weights(path: Path, device: torch.device, options: dict[str, Any]) -> PreTrainedModel:
    """The frozen model on `device`; under FSDP, this process's share of it."""

    def read() -> PreTrainedModel:
        model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, **options)
        return model.requires_grad_(False)

    if not distributed.sharded():
        return read().to(device)
    if "quantization_config" in options:
        raise UserError(
            "4-bit weights (nf4) cannot be sharded over processes",
            where="launch.strategy",
            fix="use ddp, or model.dtype: bfloat16",
        )
    with distributed.one_at_a_time():
        # So the machine's memory holds one whole model at a time, whatever the number of processes.
        model = read()
        distributed.shard(model, device)
    return model


def read_source(path: Path) -> dict[str, Any]:
    """What the `base_model` stage recorded about the model's origin (empty if nothing)."""
    record = path / SOURCE
    return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}


def pick_device() -> torch.device:
    """The device to compute on: `PRLHF_DEVICE` if set, else CUDA if available, else the CPU.

    Of several processes on a machine, each takes its own GPU.

    Raises:
        UserError: `PRLHF_DEVICE` is not a device, or there are more processes than GPUs.
    """
    name = os.environ.get("PRLHF_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(
            f"{name!r} is not a torch device", where="PRLHF_DEVICE", fix="use cpu, cuda or cuda:0"
        ) from error
    if device.type != "cuda" or distributed.world_size() == 1:
        return device
    number, present = distributed.local_rank(), torch.cuda.device_count()
    if number >= present:
        raise UserError(
            f"more processes than GPUs: this machine has {present}",
            where="launch.processes",
            fix="start one for each GPU, or set PRLHF_DEVICE=cpu",
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of `model.dtype`."""
    if name == "auto":
        # Many CPUs emulate bfloat16, which is slow.
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[name]


def nf4_options(device: torch.device) -> dict[str, Any]:
    """Options of `from_pretrained` for 4-bit NormalFloat weights (QLoRA, arXiv:2305.14314).

    The computation is in bfloat16, the scales of the blocks are quantised as well (section 3), and
    embeddings and output layer stay in bfloat16.

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
        # Quantised on the device layer by layer: the whole model is never there in 16 bits.
        "device_map": {"": device},
    }


def positions_of(model: PreTrainedModel) -> int | None:
    """How many positions the model has; None if its configuration names no bound."""
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit


def require_positions(model: PreTrainedModel, needed: int, what: str, *, fix: str) -> None:
    """Check that the model has the `needed` positions; more would be untrained or do not exist.

    Raises:
        UserError: it has fewer, for the text called `what`; advises `fix`.
    """
    limit = positions_of(model)
    if limit is not None and needed > limit:
        raise UserError(
            f"{what} can take {needed} tokens, and the model has {limit} positions",
            where="params.yaml",
            fix=fix,
        )


def without_dropout(model: PreTrainedModel) -> None:
    """Switch the base model's own dropout off for good.

    With it, policy and reference would differ at random. Adapters have their own dropout
    (`optimizer.lora.dropout`).
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


# -- text to tokens ------------------------------------------------------------------------------

CACHED: Final = 2**13
"""Encoded prompts, and users' texts, that an encoder remembers."""


class Encoder:
    """Prompts and responses to token ids, within limits.

    Args:
        chat: the base model's tokenizer; its chat template is used if it has one.
        max_prompt: most tokens of a prompt. A longer one loses its middle, so that both its opening
            (system message) and its end (the question, the reply header) survive; see
            `encode_within`.
        max_response: most tokens of a response including its end mark. A longer one is cut at its
            end and then has no end mark.
        max_user_text: most tokens of a user's text including the line break after it. A longer one
            is cut at its end. None for a model that reads no user texts.
    """

    def __init__(
        self,
        chat: ChatTokenizer,
        max_prompt: int,
        max_response: int,
        max_user_text: int | None = None,
    ) -> None:
        self.chat = chat
        self.max_prompt = max_prompt
        self.max_response = max_response
        self.max_user_text = max_user_text
        self._prompt = lru_cache(CACHED)(self._encode_prompt)
        self._user_text = lru_cache(CACHED)(self._encode_user_text)

    @classmethod
    def from_params(
        cls, chat: ChatTokenizer, tokens: TokenParams, *, text: bool = False
    ) -> Encoder:
        """An encoder with the limits of params.yaml, for a model that reads users' texts or not."""
        user_text = tokens.max_user_text if text else None
        return cls(chat, tokens.max_prompt, tokens.max_response, user_text)

    @property
    def reads_text(self) -> bool:
        """Whether the user's text is read in front of the prompt."""
        return self.max_user_text is not None

    @property
    def longest(self) -> int:
        """Most tokens of a user's text, a prompt and one response together."""
        return self.max_prompt + self.max_response + (self.max_user_text or 0)

    def prompt(self, prompt: str, user_text: str | None = None) -> list[int]:
        """Token ids of a canonical prompt (see `prlhf.data`), truncated in the middle.

        `f_explicit` of the paper (section 4.1) is the model's own embedding of the user's text, so
        the text is just tokens in front of the prompt's, before the chat template opens. An encoder
        that reads no user texts ignores it.
        """
        if self.max_user_text is None or user_text is None:
            return self._prompt(prompt)
        return [*self._user_text(user_text, self.max_user_text), *self._prompt(prompt)]

    def _encode_prompt(self, prompt: str) -> list[int]:
        try:
            return encode_within(self.chat, messages(prompt), self.max_prompt)
        except RefusedPromptError as error:
            words = " ".join(messages(prompt)[-1]["content"].split())[:60]
            raise RefusedPromptError(
                error.problem, where=f"prompt {words!r}", fix=error.fix
            ) from error

    def _encode_user_text(self, text: str, limit: int) -> list[int]:
        end = self.chat.text("\n")
        return [*self.chat.text(text)[: limit - len(end)], *end]

    def user_texts(self, table: pd.DataFrame) -> list[str | None]:
        """The text read in front of each row's prompt: its `user_text`, or None if not read.

        Rows with the same prompt and the same text here have the same prefix.
        """
        if not self.reads_text:
            return [None] * len(table)
        return [clean_user_text(text) for text in table["user_text"]]

    def given_texts(self, texts: Sequence[str | None] | None, count: int) -> list[str | None]:
        """The texts of `count` users as a caller gives them; None for a user without one.

        Raises:
            UserError: there are more or fewer, or the model reads no user texts.
        """
        if texts is None:
            return [None] * count
        if len(texts) != count:
            raise UserError(f"{count} prompts but {len(texts)} texts", fix="give one each")
        if not self.reads_text:
            raise UserError(
                "the model reads no user texts",
                fix="leave them out, or load a method that has `text: true`",
            )
        return [clean_user_text(text) for text in texts]

    def response(self, text: str) -> list[int]:
        """Token ids of a response, closed as the model closes an answer unless it was cut.

        If the text brings the end mark along, that is no part of it.
        """
        ids = self.chat.text(self.chat.without_end(text))
        closing = self.chat.conventions.closing
        if len(ids) + len(closing) <= self.max_response:
            return [*ids, *closing]
        return ids[: self.max_response]


def encode_within(chat: ChatTokenizer, conversation: Messages, limit: int) -> list[int]:
    """A conversation in at most `limit` tokens.

    Whole exchanges (a message and its reply) are dropped first: those between the first and the
    last, oldest first, then the first. After that tokens are cut from the middle of the rest.

    Raises:
        RefusedPromptError: the model's chat template refuses the conversation.
    """
    ids = chat.conversation(conversation)
    opening = 1 if conversation[0]["role"] == "system" else 0
    while len(ids) > limit and len(conversation) >= opening + 3:
        at = opening + 2 if len(conversation) >= opening + 5 else opening
        conversation = [*conversation[:at], *conversation[at + 2 :]]
        ids = chat.conversation(conversation)
    return cut_middle(ids, limit)


def cut_middle(ids: list[int], limit: int) -> list[int]:
    """At most `limit` ids: a quarter of them from the start, the rest from the end."""
    if len(ids) <= limit:
        return ids
    head = limit // 4
    return ids[:head] + ids[len(ids) - (limit - head) :]

"""Loading a resolved base model, and turning prompts and responses into tokens.

Everything here is architecture-neutral: any Hugging Face causal language model with a tokenizer.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.utils import logging as hub_logging
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from prlhf import distributed
from prlhf.data.contract import messages, stated
from prlhf.errors import UserError
from prlhf.models.quantized import NF4, nf4_options

if TYPE_CHECKING:
    import pandas as pd

SOURCE = "prlhf_source.json"
"""What the `base_model` stage records beside the weights about where they came from."""

REMEMBERED = 2**13
"""Encoded prompts, and texts of users, that are kept for when they come again."""

_LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)
"""What `from_pretrained` raises when files are missing, broken or of another kind."""

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    NF4: torch.bfloat16,  # what is computed in
}


def pick_device() -> torch.device:
    """The device to compute on: `PRLHF_DEVICE` if set, else CUDA when there is one, else CPU.

    Of several processes on a machine each takes a GPU of its own.
    """
    name = os.environ.get("PRLHF_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(
            f"{name!r} is no torch device", where="PRLHF_DEVICE", fix="use cpu, cuda or cuda:0"
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
    """`auto` is bfloat16 on CUDA and float32 elsewhere (bfloat16 is emulated on many CPUs)."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[name]


@dataclass(frozen=True)
class BaseModel:
    """A frozen base language model, its tokenizer and where it came from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    path: Path
    source: dict[str, Any]

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def hidden_size(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[1])


def load_base(path: Path, dtype: str = "auto") -> BaseModel:
    """Load the model in directory `path` (written by the `base_model` stage), frozen, in eval mode.

    Raises:
        UserError: the directory is missing or is not a causal language model, or `dtype` cannot be
            had here.
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
        model = _weights(path, device, {"dtype": pick_dtype(dtype, device), **options})
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-sequence token", where=path)
    without_dropout(model)
    model.eval()
    return BaseModel(model, tokenizer, path, read_source(path))


def _weights(path: Path, device: torch.device, options: dict[str, Any]) -> PreTrainedModel:
    """The model in `path`, frozen, on `device`; this process's part of it if it is spread out."""

    def read() -> PreTrainedModel:
        model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, **options)
        return model.requires_grad_(False)

    if not distributed.sharded():
        return read().to(device)
    if "quantization_config" in options:
        raise UserError(
            "4-bit weights (nf4) cannot be spread over processes",
            where="launch.strategy",
            fix="use ddp, or model.dtype: bfloat16",
        )
    with distributed.one_at_a_time():
        # The machine's memory has to hold the whole model once, however many processes there are.
        model = read()
        distributed.shard(model, device)
    return model


@contextmanager
def loading(problem: str, *, where: str | Path, fix: str | None = None) -> Iterator[None]:
    """Turn what transformers raises for files that are missing or wrong into one plain error.

    Raises:
        UserError: `problem`, with the first line of what was raised inside.
    """
    try:
        yield
    except _LOAD_ERRORS as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{problem}: {first_line}", where=where, fix=fix) from error


def require_positions(model: PreTrainedModel, needed: int, what: str, *, fix: str) -> None:
    """Check that a text can be as long as it may become.

    Beyond its positions a model with learned ones has no embedding, and another one no sense.

    Args:
        model: says in its configuration how many positions it has, if that is limited.
        needed: how many the longest text takes.
        what: whose they are.
        fix: what to do about it.

    Raises:
        UserError: the model has fewer.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and needed > limit:
        raise UserError(
            f"{what} can take {needed} tokens, and the model has {limit} positions",
            where="params.yaml",
            fix=fix,
        )


def without_dropout(model: PreTrainedModel) -> None:
    """Switch the base model's own dropout off for good.

    Its training had a use for it; here it would make the policy differ from the reference at
    random. The adapters have a dropout of their own (`train.lora.dropout`).
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def read_source(path: Path) -> dict[str, Any]:
    """What the `base_model` stage recorded about the model's origin (empty if nothing)."""
    record = path / SOURCE
    return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}


def quiet_transformers() -> None:
    """Silence load banners, bars and warnings meant for library authors."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
    warnings.filterwarnings("ignore", message=r"Passing `\w+` with `inputs_embeds`")
    hub_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


class Encoder:
    """Prompts and responses to token ids, with the truncation rules in one place.

    Args:
        tokenizer: the base model's tokenizer; its chat template is used when it has one.
        max_prompt: most tokens of a prompt; the middle of a longer one is left out, so that neither
            the opening (system message) nor the end (the question, the reply header) is lost. See
            `encode_within`.
        max_response: most tokens of a response including its end-of-sequence token; a longer one
            is cut at its end and then carries no end-of-sequence token.
        max_user_text: most tokens of a user's text, the line break behind it included; a longer
            one is cut at its end. None for a model that reads no user text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_prompt: int,
        max_response: int,
        max_user_text: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_prompt = max_prompt
        self.max_response = max_response
        self.max_user_text = max_user_text
        self.eos = int(tokenizer.eos_token_id)
        # Bounded: a data set has more of them than memory should hold.
        self._prompt = lru_cache(REMEMBERED)(self._encode_prompt)
        self._user_text = lru_cache(REMEMBERED)(self._encode_user_text)

    @property
    def reads_text(self) -> bool:
        """Whether prompts are read behind the text of their users."""
        return self.max_user_text is not None

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its user's text and one response."""
        return self.max_prompt + self.max_response + (self.max_user_text or 0)

    def prompt(self, prompt: str, user_text: str | None = None) -> list[int]:
        """Token ids of a canonical prompt (see `prlhf.data.contract`), truncated in the middle.

        `f_explicit` of the paper (section 4.1) is the model's own embedding of the user's text, so
        the text is nothing but tokens before the prompt's: before the chat template opens. A model
        that reads no user text gets none, whatever is given.
        """
        if self.max_user_text is None or user_text is None:
            return self._prompt(prompt)
        return [*self._user_text(user_text, self.max_user_text), *self._prompt(prompt)]

    def _encode_prompt(self, prompt: str) -> list[int]:
        return encode_within(self.tokenizer, messages(prompt), self.max_prompt)

    def _encode_user_text(self, text: str, limit: int) -> list[int]:
        end = self.text("\n")
        return [*self.text(text)[: limit - len(end)], *end]

    def user_texts(self, table: pd.DataFrame) -> list[str | None]:
        """What the model reads of the user of each row: `user_text`, or nothing at all.

        Together with the prompt this names a prefix: rows that differ in it share no computation.
        """
        if not self.reads_text:
            return [None] * len(table)
        return [stated(text) for text in table["user_text"]]

    def given_texts(self, texts: Sequence[str | None] | None, count: int) -> list[str | None]:
        """Texts of `count` users as a caller gives them; None for those who say nothing.

        Raises:
            UserError: there are more or fewer of them, or the model reads none.
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
        return [stated(text) for text in texts]

    def text(self, text: str) -> list[int]:
        """Token ids of plain text, nothing added, nothing cut."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def response(self, text: str) -> list[int]:
        """Token ids of a response, closed by the end-of-sequence token unless it was cut."""
        ids = self.text(text)
        if len(ids) < self.max_response:
            return [*ids, self.eos]
        return ids[: self.max_response]


def encode_messages(
    tokenizer: PreTrainedTokenizerBase, conversation: list[dict[str, str]]
) -> list[int]:
    """A conversation through the model's chat template, or joined as plain text without one.

    Raises:
        UserError: the template refuses the conversation (some know no system message).
    """
    if tokenizer.chat_template:
        try:
            ids = tokenizer.apply_chat_template(
                conversation, tokenize=True, add_generation_prompt=True, return_dict=True
            )["input_ids"]
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in conversation)
            raise UserError(
                f"the model's chat template refuses a prompt with the roles {roles}: {error}",
                where="model.name",
                fix="choose another base model, or change the prompts",
            ) from error
    else:
        text = "\n".join(message["content"] for message in conversation)
        ids = tokenizer(text)["input_ids"]
    return [int(i) for i in ids]


def encode_within(
    tokenizer: PreTrainedTokenizerBase, conversation: list[dict[str, str]], limit: int
) -> list[int]:
    """A conversation in at most `limit` tokens, its middle left out.

    What can be left out whole is: exchanges (a message and its reply) between the first and the
    last, the oldest of them first, and then the first. Within what remains tokens are cut.
    """
    ids = encode_messages(tokenizer, conversation)
    opening = 1 if conversation[0]["role"] == "system" else 0
    while len(ids) > limit and len(conversation) >= opening + 3:
        at = opening + 2 if len(conversation) >= opening + 5 else opening
        conversation = conversation[:at] + conversation[at + 2 :]
        ids = encode_messages(tokenizer, conversation)
    return cut_middle(ids, limit)


def cut_middle(ids: list[int], limit: int) -> list[int]:
    """At most `limit` ids: a quarter from the start, the rest from the end."""
    if len(ids) <= limit:
        return ids
    head = limit // 4
    return ids[:head] + ids[len(ids) - (limit - head) :]

"""The tokenizer of a resolved base model: its own, or one that is given in its place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2 import TemplateError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from prlhf.errors import UserError
from prlhf.models.base import loading
from prlhf.progress import say

CHAT_TEMPLATES: Final = {
    "tulu": (
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
}
"""Chat forms of models that were published before tokenizers carried a template, by name."""

_FILES: Final = (
    "tokenizer*",
    "chat_template*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
)
"""What a tokenizer consists of; left behind, a part of another one would be read with it."""

WHERE: Final = "model.tokenizer"


@dataclass(frozen=True)
class TokenizerSource:
    """Where a tokenizer comes from, see `model.tokenizer`.

    Attributes:
        name: a hub id `org/name` or a local directory; None for the model's own.
        revision: commit or tag; required for a hub id, unused otherwise.
        chat_template: a name in `CHAT_TEMPLATES`, or Jinja; None for the tokenizer's own.
    """

    name: str | None = None
    revision: str | None = None
    chat_template: str | None = None


OWN: Final = TokenizerSource()


def put_tokenizer(source: TokenizerSource, directory: Path) -> dict[str, Any]:
    """Give the model in `directory` the tokenizer that is asked for, and try it.

    Returns:
        What the name resolved to, for the model's record; empty if nothing was asked for.

    Raises:
        UserError: it cannot be had, gives no tokens, has tokens that the model does not, or its
            chat template cannot be used.
    """
    record: dict[str, Any] = {}
    if source.name is not None:
        tokenizer, record = _fetch(source.name, source.revision)
        for pattern in _FILES:
            for file in directory.glob(pattern):
                file.unlink()
        tokenizer.save_pretrained(directory)
    else:
        with loading(
            "the model has no tokenizer that can be loaded",
            where="model.name",
            fix=f"set {WHERE}.name to a model that has the same one",
        ):
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    if not tokenizer("Why?", add_special_tokens=False)["input_ids"]:
        # What transformers makes of a repository that has no files of a tokenizer.
        raise UserError(
            "the tokenizer makes no tokens of a text: its files are missing",
            where="model.name" if source.name is None else f"{WHERE}.name",
            fix=f"set {WHERE}.name to a model that has the same one",
        )
    if source.name is not None:
        _check_vocabulary(tokenizer, directory)
    if source.chat_template is not None:
        template = CHAT_TEMPLATES.get(source.chat_template, source.chat_template)
        _check_template(tokenizer, template)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(directory)
        record["chat_template"] = source.chat_template
    elif not tokenizer.chat_template:
        say(
            "base_model: the tokenizer has no chat template: prompts are read as they are, "
            f"messages one below the other ({WHERE}.chat_template can give one)"
        )
    return record


def _fetch(name: str, revision: str | None) -> tuple[PreTrainedTokenizerBase, dict[str, Any]]:
    local = Path(name).expanduser()
    if local.is_dir():
        with loading("holds no tokenizer", where=f"{WHERE}.name"):
            tokenizer = AutoTokenizer.from_pretrained(local, local_files_only=True)
        return tokenizer, {"kind": "directory", "name": local.resolve().name}
    if revision is None:
        raise UserError(
            f"{name} is no directory, and as a hub id its revision is not pinned",
            where=f"{WHERE}.revision",
            fix="set it to a commit hash of the tokenizer's repository",
        )
    say(f"base_model: fetching the tokenizer of {name} at {revision}")
    with loading(
        f"{name} at {revision} cannot be fetched or loaded",
        where=f"{WHERE}.name",
        fix="check the name, the revision, your access (HF_TOKEN) and the network",
    ):
        commit = Path(cached_file(name, "config.json", revision=revision)).parent.name
        tokenizer = AutoTokenizer.from_pretrained(name, revision=commit)
    return tokenizer, {"kind": "hub", "name": name, "revision": revision, "commit": commit}


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    config = AutoConfig.from_pretrained(directory, local_files_only=True).get_text_config()
    highest = max(tokenizer.get_vocab().values())
    if highest >= config.vocab_size:
        raise UserError(
            f"has a token {highest}, and the model has embeddings of {config.vocab_size}",
            where=f"{WHERE}.name",
            fix="name a model that has the same tokenizer",
        )


def _check_template(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    fix = f"use Jinja, or one of {', '.join(CHAT_TEMPLATES)}"
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Why?"}],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
        )
    except TemplateError as error:
        raise UserError(str(error), where=f"{WHERE}.chat_template", fix=fix) from error
    if "Why?" not in str(text):
        raise UserError("leaves the prompt out", where=f"{WHERE}.chat_template", fix=fix)

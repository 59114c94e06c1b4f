"""Chat in tokens: conversations through a model's chat template, and words that stay words."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Final

from jinja2 import TemplateError
from transformers import AddedToken, PreTrainedTokenizerBase

from prlhf.infra.errors import UserError

Messages = Sequence[Mapping[str, str]]

BARE: Final = "{{ messages[0]['content'] }}"
"""A chat template without marks: a text as it is."""


class RefusedPromptError(UserError):
    """A conversation that the chat template refuses, by a rule of its own or by failing on it."""


@dataclass(frozen=True)
class Conventions:
    """What a model's chat template and its tokenizer agree on.

    Attributes:
        opening: what stands between the last question and its answer.
        end: the words that close an answer.
        closing: their tokens, behind every response that was not cut.
        stops: tokens that end an answer when it is generated, ascending.
        stop_texts: words that do, for templates that mark turns by words.
        marks: the tokens that the template puts between turns, as texts.
        date: the day that the template prints as today's, `YYYY-MM-DD`; None if it prints none.
    """

    opening: str
    end: str
    closing: tuple[int, ...]
    stops: tuple[int, ...]
    stop_texts: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    date: str | None = None

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Conventions:
        """Conventions as `record` gave them, and JSON returned them."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in record.items()
        }
        return cls(**values)

    def record(self) -> dict[str, Any]:
        """The same for JSON."""
        return asdict(self)


class ChatTokenizer:
    """Texts and conversations to tokens, and answers back to texts.

    What people write is text: a `<|im_end|>` in their words is spelled out in ordinary tokens, so
    that nobody can close a turn, open another one or speak as the system. Marks come from the chat
    template only.

    Args:
        tokenizer: the base model's. Its `chat_control_tokens` are set.
        conventions: the base model's, see `prlhf.models.conventions`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, conventions: Conventions) -> None:
        self.tokenizer = tokenizer
        self.conventions = conventions
        # Beside special tokens. Other added tokens are words to the tokenizer's makers, too.
        tokenizer.chat_control_tokens = list(conventions.marks)
        added = tokenizer.added_tokens_decoder
        control = {token.content for token in added.values() if token.special and is_mark(token)}
        self.control_tokens: frozenset[str] = frozenset(control | set(conventions.marks))
        self._control = any_of(self.control_tokens)
        ends = {added[stop].content for stop in conventions.stops if stop in added}
        self._ends = tuple({*ends, *conventions.stop_texts})

    def conversation(self, messages: Messages) -> list[int]:
        """Token ids of a conversation up to the reply, through the chat template if there is one.

        An end mark at the end of an assistant's message is taken off: the template brings its own.
        Without a template, messages are joined by line breaks behind what the tokenizer puts in
        front of a text (never what it puts behind one).

        Args:
            messages: each `{"role": ..., "content": ...}`.

        Raises:
            RefusedPromptError: the template refuses the conversation.
        """
        if not self.tokenizer.chat_template:
            return [*self._prefix, *self.text("\n".join(each["content"] for each in messages))]
        turns = [
            {**turn, "content": self.without_end(turn["content"])}
            if turn["role"] == "assistant"
            else dict(turn)
            for turn in messages
        ]
        return self._encode(turns, add_generation_prompt=True)

    def text(self, text: str) -> list[int]:
        """Token ids of plain text, with nothing added and nothing cut."""
        if self._is_plain(text):
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._encode([as_turn("user", text)], chat_template=BARE)

    def without_end(self, text: str) -> str:
        """A text without the end marks at its end, which exports of conversations often have."""
        end = kept = len(text)
        while True:
            while end and text[end - 1].isspace():
                end -= 1
            mark = next((each for each in self._ends if text.endswith(each, 0, end)), None)
            if mark is None:
                return text[:kept]
            end = kept = end - len(mark)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer's tokens, up to the words that end it."""
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        for stop in self.conventions.stop_texts:
            text = text.partition(stop)[0]
        return text.strip()

    @cached_property
    def _prefix(self) -> list[int]:
        """What the tokenizer's post-processor puts in front of a text."""
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a")["input_ids"]
        starts = range(len(whole) - len(bare) + 1)
        found = next((at for at in starts if whole[at : at + len(bare)] == bare), 0)
        return [int(token) for token in whole[:found]]

    def _encode(self, messages: list[dict[str, str]], **how: Any) -> list[int]:
        how |= {"tokenize": True, "return_dict": True}
        hostile = not all(self._is_plain(turn["content"]) for turn in messages)
        if hostile:
            for turn in messages:
                turn["content"] = self._as_read(turn["content"])
        try:
            found = apply_template(self.tokenizer, messages, sanitize_control_tokens=hostile, **how)
        except RefusedPromptError:
            if not hostile:
                raise
            # A few vocabularies hold special tokens among their words, too, and transformers then
            # refuses to spell them.
            for turn in messages:
                turn["content"] = self._control.sub(_apart, turn["content"])
            found = apply_template(self.tokenizer, messages, **how)
        return [int(token) for token in found["input_ids"]]

    def _is_plain(self, text: str) -> bool:
        """Whether there is no control token in a text, as it is and as the tokenizer reads it."""
        return self._control.search(self._as_read(text)) is None

    def _as_read(self, text: str) -> str:
        """The text as the tokenizer normalises it, if that brings out more control tokens."""
        normalizer = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "normalizer", None)
        if normalizer is None:
            return text
        normal = str(normalizer.normalize_str(text))
        more = len(self._control.findall(normal)) > len(self._control.findall(text))
        return normal if more else text


def apply_template(tokenizer: PreTrainedTokenizerBase, messages: Messages, **how: Any) -> Any:
    """The tokenizer's `apply_chat_template`, with one error for all ways of failing.

    Raises:
        RefusedPromptError: the template refuses the conversation, or fails on it.
    """
    try:
        return tokenizer.apply_chat_template(list(messages), **how)
    except MemoryError:
        raise
    except Exception as error:  # whatever an expression of the template raises
        roles = ", ".join(turn["role"] for turn in messages)
        said = str(error) if isinstance(error, TemplateError) else ""
        raise RefusedPromptError(
            f"the model's chat template refuses a prompt with the roles {roles}: "
            f"{said or f'it fails with {type(error).__name__}: {error}'}",
            where="model.name",
            fix="choose another base model or model.tokenizer.chat_template, or change the prompts",
        ) from error


def is_mark(token: AddedToken) -> bool:
    """Whether an added token can be one: neither white space nor a single character."""
    return len(token.content.strip()) > 1


def any_of(texts: Collection[str]) -> re.Pattern[str]:
    """A pattern of any of the texts, the longest that fits; of none, what never matches."""
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def as_turn(role: str, content: str) -> dict[str, str]:
    """A message as chat templates take it."""
    return {"role": role, "content": content}


def _apart(found: re.Match[str]) -> str:
    return f"{found[0][0]} {found[0][1:]}"

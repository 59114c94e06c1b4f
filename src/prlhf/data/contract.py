"""The data contract: the columns of every table, canonical prompts, stable ids.

Pure and light on purpose: the stages that read data import this and nothing heavier.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from prlhf.errors import UserError
from prlhf.io import content_hash

ROW_COLUMNS: Final = (
    "row",
    "source",
    "user_id",
    "prompt",
    "chosen",
    "rejected",
    "user_text",
    "weight",
    "group",
    "unseen",
)
"""`ingested/rows.parquet`: every source row, in source order."""

SPLIT_COLUMNS: Final = ("side", "unit")
"""Follow them where a data set brings its own split: `side` is "train" or "test", and the rows of
one `unit` (a dialogue) stay together; a row without one goes with its prompt."""

PAIR_COLUMNS: Final = (
    "pair_id",
    "prompt_id",
    "user_id",
    "user_index",
    "prompt",
    "chosen",
    "rejected",
    "user_text",
    "weight",
    "group",
    "row",
)
"""`prepared/{train,validation,test}.parquet`; `unseen.parquet` adds `prompt_split`."""

USER_COLUMNS: Final = (
    "user_id",
    "user_index",
    "group",
    "user_text",
    "seen",
    "pairs_train",
    "pairs_validation",
    "pairs_test",
)
"""`prepared/users.parquet`."""

SPLITS: Final = ("train", "validation", "test")
"""The sides a prompt can be on."""

GENERIC_INDEX: Final = 0
"""The `user_index` of the generic user, which unseen users share."""

ROLES: Final = ("system", "user", "assistant")
"""The roles of a prompt's messages."""

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class PromptError(ValueError):
    """A prompt that is neither a text nor a list of chat messages ending with the user's."""


class EmptyPromptError(PromptError):
    """A well-formed prompt without content."""


def canonical_prompt(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """The one spelling of a prompt: JSON of its messages, without spaces between tokens.

    A plain text becomes one user message. Text is kept verbatim, keys of a message other than
    `role` and `content` are dropped.

    Raises:
        EmptyPromptError: There is no message, or one holds nothing but white space.
        PromptError: `prompt` has another type or malformed messages, or does not end with the
            user's turn.
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    elif not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise PromptError(f"expected text or a list of messages, found {describe(prompt)}")
    if not prompt:
        raise EmptyPromptError("a list of messages without a message")
    kept = [_message(message, number) for number, message in enumerate(prompt, 1)]
    if kept[-1]["role"] != "user":
        raise PromptError(f"the last message is the {kept[-1]['role']}'s, it must be the user's")
    if not all(message["content"].strip() for message in kept):
        raise EmptyPromptError("a message without content")
    text = _encode(kept)
    if not encodable(text):
        raise PromptError("holds an unpaired surrogate, which is no valid Unicode text")
    return text


def messages(prompt: str) -> list[dict[str, str]]:
    """The messages of a canonical prompt, each `{"role": ..., "content": ...}`."""
    parsed: list[dict[str, str]] = json.loads(prompt)
    return parsed


def prompt_chars(prompt: str) -> int:
    """Characters in the messages of a canonical prompt."""
    return sum(len(message["content"]) for message in messages(prompt))


def prompt_id(prompt: str) -> str:
    """The id of a canonical prompt."""
    return content_hash(prompt)


def pair_id(user_id: str, prompt: str, chosen: str, rejected: str) -> str:
    """The id of one judgement: equal for a repetition, different for the opposite verdict."""
    return content_hash(user_id, prompt, chosen, rejected)


def stated(value: object) -> str | None:
    """What a user says of themselves (a value of `user_text`); None where that is nothing."""
    return value.strip() or None if isinstance(value, str) else None


def require_stated(texts: Iterable[object], where: str) -> None:
    """Make sure that a model which reads what users say of themselves has something to read.

    Raises:
        UserError: No user says anything.
    """
    if all(stated(text) is None for text in texts):
        raise UserError(
            "reads user_text, but no user of this data set has one",
            where=where,
            fix="map data.columns.user_text, or leave the method out of compare",
        )


def encodable(text: str) -> bool:
    """Whether `text` can be written as UTF-8; JSON escapes can smuggle in what cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def describe(value: object) -> str:
    """What a value is, in the words of an error message."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return "a list"
    return f"a value of type {type(value).__name__}"


def _message(message: object, number: int) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise PromptError(
            f"message {number}: expected an object with role and content, found {describe(message)}"
        )
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        found = "no role" if role is None else f"role {role!r}"
        raise PromptError(f"message {number} has {found}, expected one of {', '.join(ROLES)}")
    if content is None:
        raise PromptError(f"message {number} has no content")
    if not isinstance(content, str):
        raise PromptError(f"message {number}: expected text as content, found {describe(content)}")
    return {"role": role, "content": content}

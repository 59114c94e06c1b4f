"""Canonical prompts: the one spelling in which prompts are stored, compared and hashed.

`canonical_prompt` spells one prompt. The functions for whole Arrow columns give the same without a
Python call for each row; they take a column in pieces, which bounds their memory.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prlhf.data.identity import PIECE, UNUSUAL, VISIBLE, WHITE, mapped, normal_text
from prlhf.data.ids import content_hash

ROLES: Final = ("system", "user", "assistant")
"""The roles of a prompt's messages."""

UNENCODABLE: Final = "holds an unpaired surrogate, which is no valid Unicode text"
"""What is wrong with a text that is not `encodable`."""

# The characters that JSON escapes: the backslash, which must come first, frequent and other ones.
_COMMON: Final = '\\"\n\r\t'
_OTHER: Final = "".join(chr(code) for code in range(32) if chr(code) not in _COMMON)
_ESCAPE: Final = r"\\(?:u[0-9a-f]{4}|.)"
# What stands around the escaped text of a single user message.
_HEAD, _TAIL = '[{"role":"user","content":"', '"}]'

_VISIBLE = re.compile(VISIBLE)
# What in a canonical prompt `normal_prompt` might change: unusual characters, escapes but those of
# quotes, backslashes and line feeds, and spaces and line ends at the edges of a line or text.
_UNUSUAL: Final = rf'[{UNUSUAL}]|\\[bfrtu]| \\n|"content":"(?: |\\n)|(?: |\\n)"}}'

# White space as it stands in a canonical prompt.
_SPACES: Final = rf"(?:[{WHITE}]|\\[nt]|\\u001f)+"

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class PromptError(ValueError):
    """A prompt that is neither a text nor a list of chat messages ending with the user's."""


class EmptyPromptError(PromptError):
    """A well-formed prompt without content."""


def canonical_prompt(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """The one spelling of a prompt: JSON of its messages, without spaces between tokens.

    A plain text becomes one user message. Text is kept verbatim; keys of a message other than
    `role` and `content` are dropped, and so are system messages without content.

    Raises:
        EmptyPromptError: There is no message, or one holds nothing that shows.
        PromptError: `prompt` has another type or malformed messages, or does not end with the
            user's turn.
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    elif not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise PromptError(f"expected text or a list of messages, found {describe(prompt)}")
    if not prompt:
        raise EmptyPromptError("a list of messages without a message")
    every = [chat_message(message, number) for number, message in enumerate(prompt, 1)]
    kept = [each for each in every if each["role"] != "system" or _VISIBLE.search(each["content"])]
    if kept and kept[-1]["role"] != "user":
        raise PromptError(f"the last message is the {kept[-1]['role']}'s, it must be the user's")
    if not kept or not all(_VISIBLE.search(message["content"]) for message in kept):
        raise EmptyPromptError("a message without content")
    text = _encode(kept)
    if not encodable(text):
        raise PromptError(UNENCODABLE)
    return text


def canonical_or_none(prompt: str | Sequence[Mapping[str, Any]]) -> str | None:
    """As `canonical_prompt`, but None for a prompt without content.

    Raises:
        PromptError: See `canonical_prompt`.
    """
    try:
        return canonical_prompt(prompt)
    except EmptyPromptError:
        return None


def messages(prompt: str) -> list[dict[str, str]]:
    """The messages of a canonical prompt, each `{"role": ..., "content": ...}`."""
    parsed: list[dict[str, str]] = json.loads(prompt)
    return parsed


def prompt_chars(prompt: str) -> int:
    """Characters in the messages of a canonical prompt."""
    return sum(len(message["content"]) for message in messages(prompt))


def normal_prompt(prompt: str) -> str:
    """A canonical prompt with its messages' text in the form of `identity.normal_text`."""
    return _encode([each | {"content": normal_text(each["content"])} for each in messages(prompt)])


def normal_prompts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """`normal_prompt` of canonical prompts, none of them missing."""
    return mapped(column, normal_prompt, _UNUSUAL)


def prompt_id(prompt: str) -> str:
    """The id of a canonical prompt, the same in any encoding (`identity.normal_text`)."""
    return content_hash(normal_prompt(prompt))


def opening(prompt: str) -> str:
    """The opening of a canonical prompt's dialogue: its messages up to the first one of the user's.

    All turns of a dialogue have the same; a prompt of a single turn is its own.
    """
    found = messages(prompt)
    first = next(place for place, each in enumerate(found, 1) if each["role"] == "user")
    return prompt if first == len(found) else _encode(found[:first])


def openings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """`opening` of canonical prompts, none of them missing."""
    return pa.chunked_array([_openings(piece) for piece in _pieces(column)], pa.large_string())


def opening_keys(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A key of openings in the form of `normal_prompts`; the same if only white space differs.

    It is coarser than `prompt_id`: what is nearly the same prompt must not be on two sides, but
    within a prompt white space may be what it is about.
    """
    kind = pa.large_string()
    # A control character, which JSON escapes, for what would look like an escape behind it.
    marked = (pc.replace_substring(piece, r"\\", "\x01") for piece in column.chunks)
    found = [pc.replace_substring_regex(piece, _SPACES, " ") for piece in marked]
    return pa.chunked_array(found, kind)


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
        return f"the number {value!s:.40}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return "a list"
    return f"a value of type {type(value).__name__}"


def text_prompts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Canonical prompts of texts; missing where the text is, or has nothing but white space."""

    def prompts(texts: pa.Array) -> pa.Array:
        texts = texts.cast(pa.large_string())
        whole = _joined(_HEAD, _escaped(texts), _TAIL)
        return pc.if_else(_is_blank(texts), pa.scalar(None, pa.large_string()), whole)

    return pa.chunked_array([prompts(piece) for piece in _pieces(column)], pa.large_string())


def message_prompts(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Canonical prompts of lists of messages; None if any list is malformed.

    Missing where the list is, where it is empty, and where a message has nothing but white space.
    """
    kind = column.type.value_type
    names = [kind.field(index).name for index in range(kind.num_fields)]
    if not pa.types.is_struct(kind) or not {"role", "content"} <= set(names):
        return None
    found = []
    for piece in _pieces(column):
        if (prompts := _of_messages(piece)) is None:
            return None
        found.append(prompts)
    return pa.chunked_array(found, pa.large_string())


def prompt_lengths(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """`prompt_chars` of canonical prompts."""
    return pa.chunked_array([_lengths(piece) for piece in _pieces(column)], pa.int64())


def _lengths(prompts: pa.Array) -> pa.Array:
    # Every escape is one character. What is left of a single message has no quote in it.
    plain = pc.replace_substring_regex(prompts, _ESCAPE, "?")
    content = pc.utf8_slice_codeunits(plain, len(_HEAD), -len(_TAIL))
    single = pc.and_(pc.starts_with(plain, _HEAD), pc.invert(pc.match_substring(content, '"')))
    lengths = pc.utf8_length(content).cast(pa.int64())
    others = pc.indices_nonzero(pc.invert(single))
    counted = [prompt_chars(prompt) for prompt in prompts.take(others).to_pylist()]
    return pc.replace_with_mask(lengths, pc.invert(single), pa.array(counted, pa.int64()))


def _openings(prompts: pa.Array) -> pa.Array:
    # Within a message's text, the quotes are escaped.
    several = pc.greater(pc.count_substring(prompts, '"role":"user"'), 1)
    found = [opening(prompt) for prompt in prompts.filter(several).to_pylist()]
    return pc.replace_with_mask(prompts, several, pa.array(found, pa.large_string()))


def _of_messages(lists: pa.Array) -> pa.Array | None:
    turns = lists.flatten()
    roles, contents = (_field(turns, name) for name in ("role", "content"))
    if roles is None or contents is None or not _all(pc.is_in(roles, pa.array(ROLES))):
        return None
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype("int64")
    owners = np.repeat(np.arange(len(counts)), counts)
    kept = pc.invert(pc.and_(pc.equal(roles, "system"), _is_blank(contents))).to_numpy(False)
    roles, contents, owners = roles.filter(kept), contents.filter(kept), owners[kept]
    counts = np.bincount(owners, minlength=len(counts))
    ends = np.cumsum(counts)
    last = pc.take(roles, pa.array(ends[counts > 0] - 1))
    if not _all(pc.equal(last, "user")):
        return None
    texts = _joined('{"role":"', roles, '","content":"', _escaped(contents), '"}')
    offsets = pa.array(np.concatenate([[0], ends]))
    comma = pa.scalar(",", pa.large_string())
    joined = pc.binary_join(pa.LargeListArray.from_arrays(offsets, texts), comma)
    whole = _joined("[", joined, "]")
    empty = counts == 0
    empty[owners[_is_blank(contents).to_numpy(False)]] = True
    return pc.if_else(pa.array(empty), pa.scalar(None, pa.large_string()), whole)


def _field(turns: pa.StructArray, name: str) -> pa.Array | None:
    """A field of all messages as text; None if it is missing in one or no text."""
    if turns.null_count:
        return None
    values = pc.struct_field(turns, name)
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if values.null_count or not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return None
    return values.cast(pa.large_string())


def _all(flags: pa.Array) -> bool:
    return bool(pc.all(flags, min_count=0).as_py())


def _pieces(column: pa.ChunkedArray) -> Iterator[pa.Array]:
    for chunk in column.chunks:
        for start in range(0, len(chunk), PIECE):
            yield chunk.slice(start, PIECE)


def _joined(*parts: pa.Array | str) -> pa.Array:
    large = [
        pa.scalar(part, pa.large_string()) if isinstance(part, str) else part for part in parts
    ]
    return pc.binary_join_element_wise(*large, pa.scalar("", pa.large_string()))


def _is_blank(texts: pa.Array) -> pa.Array:
    """Whether nothing in a text shows."""
    return pc.invert(pc.match_substring_regex(texts, VISIBLE))


def _escaped(texts: pa.Array) -> pa.Array:
    """Texts as they stand between the quotes of a JSON string."""
    characters = _COMMON
    if pc.any(pc.match_substring_regex(texts, f"[{_OTHER}]")).as_py():
        characters += _OTHER
    for character in characters:
        texts = pc.replace_substring(texts, character, json.dumps(character)[1:-1])
    return texts


def chat_message(message: object, number: int) -> dict[str, str]:
    """A message's `role` and `content`, checked; `number` is its place in the prompt, from 1.

    Raises:
        PromptError: It is no message.
    """
    if not isinstance(message, Mapping):
        raise PromptError(
            f"message {number}: expected an object with role and content, found {describe(message)}"
        )
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        found = "no role" if role is None else f"role {role!r:.40}"
        raise PromptError(f"message {number} has {found}, expected one of {', '.join(ROLES)}")
    if content is None:
        raise PromptError(f"message {number} has no content")
    if not isinstance(content, str):
        raise PromptError(f"message {number}: expected text as content, found {describe(content)}")
    return {"role": role, "content": content}

"""Canonical prompts of whole Arrow columns: what `contract.canonical_prompt` makes, but at once.

Nothing here is done in Python for each row. Columns are taken in pieces, so that what is needed
beside them and the result stays small.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from prlhf.data.contract import ROLES, canonical_prompt, prompt_chars

if TYPE_CHECKING:
    import pyarrow as pa

PIECE: Final = 2**16
"""Rows taken at a time."""

_COMMON: Final = '\\"\n\r\t'
"""What JSON escapes, by how often texts have it; the backslash comes first."""

_ESCAPE: Final = r"\\(?:u[0-9a-f]{4}|.)"

_OTHER: Final = "".join(chr(code) for code in range(32) if chr(code) not in _COMMON)


def text_prompts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Canonical prompts of texts; missing where the text is, or has nothing but white space."""
    import pyarrow as pa
    import pyarrow.compute as pc

    # The frame in which the one message stands is the contract's to say.
    head, tail = canonical_prompt("?").split("?")

    def prompts(texts: pa.Array) -> pa.Array:
        texts = texts.cast(pa.large_string())
        whole = _joined(head, _escaped(texts), tail)
        return pc.if_else(_is_blank(texts), pa.scalar(None, pa.large_string()), whole)

    return pa.chunked_array([prompts(piece) for piece in _pieces(column)], pa.large_string())


def message_prompts(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Canonical prompts of lists of messages; None if any list is malformed.

    Missing where the list is, where it is empty, and where a message has nothing but white space.
    """
    import pyarrow as pa

    kind = column.type.value_type
    names = [kind.field(index).name for index in range(kind.num_fields)]
    if not pa.types.is_struct(kind) or not {"role", "content"} <= set(names):
        return None
    found = []
    for piece in _pieces(column):
        prompts = _of_messages(piece)
        if prompts is None:
            return None
        found.append(prompts)
    return pa.chunked_array(found, pa.large_string())


def prompt_lengths(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """`contract.prompt_chars` of canonical prompts."""
    import pyarrow as pa

    return pa.chunked_array([_lengths(piece) for piece in _pieces(column)], pa.int64())


def _lengths(prompts: pa.Array) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    head, tail = canonical_prompt("?").split("?")
    # Every escape is one character. What is left of a single message has no quote in it.
    plain = pc.replace_substring_regex(prompts, _ESCAPE, "?")
    content = pc.utf8_slice_codeunits(plain, len(head), -len(tail))
    single = pc.and_(pc.starts_with(plain, head), pc.invert(pc.match_substring(content, '"')))
    lengths = pc.utf8_length(content).cast(pa.int64())
    others = pc.indices_nonzero(pc.invert(single))
    counted = [prompt_chars(prompt) for prompt in prompts.take(others).to_pylist()]
    return pc.replace_with_mask(lengths, pc.invert(single), pa.array(counted, pa.int64()))


def _of_messages(lists: pa.Array) -> pa.Array | None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    messages = lists.flatten()
    roles, contents = (_field(messages, name) for name in ("role", "content"))
    if (
        roles is None
        or contents is None
        or not pc.all(pc.is_in(roles, pa.array(ROLES)), min_count=0).as_py()
    ):
        return None
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype("int64")
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
    empty[np.repeat(np.arange(len(counts)), counts)[_is_blank(contents).to_numpy(False)]] = True
    return pc.if_else(pa.array(empty), pa.scalar(None, pa.large_string()), whole)


def _field(messages: pa.StructArray, name: str) -> pa.Array | None:
    """A field of all messages as text; None if one has none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if messages.null_count:
        return None
    values = pc.struct_field(messages, name)
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if values.null_count or not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return None
    return values.cast(pa.large_string())


def _all(flags: pa.Array) -> bool:
    import pyarrow.compute as pc

    return bool(pc.all(flags, min_count=0).as_py())


def _pieces(column: pa.ChunkedArray) -> Iterator[pa.Array]:
    for chunk in column.chunks:
        for start in range(0, len(chunk), PIECE):
            yield chunk.slice(start, PIECE)


def _joined(*parts: pa.Array | str) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    large = [
        pa.scalar(part, pa.large_string()) if isinstance(part, str) else part for part in parts
    ]
    return pc.binary_join_element_wise(*large, pa.scalar("", pa.large_string()))


def _is_blank(texts: pa.Array) -> pa.Array:
    """Whether there is nothing but white space, by the same list of it as `str.strip`."""
    import pyarrow.compute as pc

    return pc.equal(pc.binary_length(pc.utf8_trim_whitespace(texts)), 0)


def _escaped(texts: pa.Array) -> pa.Array:
    """Texts as they stand between the quotes of a JSON string."""
    import pyarrow.compute as pc

    characters = _COMMON
    if pc.any(pc.match_substring_regex(texts, f"[{_OTHER}]")).as_py():
        characters += _OTHER
    for character in characters:
        texts = pc.replace_substring(texts, character, json.dumps(character)[1:-1])
    return texts

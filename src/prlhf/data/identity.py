"""When two spellings are one: of user ids, prompts and responses.

Files write the same thing in several ways: `ada`, `ada ` and `ada` behind a byte-order mark; `é` as
one character or as two; lines that end in CR LF. What is the same is decided by the forms here and
nowhere else. They are made to compare by: what is stored, shown and trained on keeps its spelling.
"""

import re
import unicodedata
from collections.abc import Callable
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

PIECE: Final = 2**16
"""Rows taken at a time."""

WHITE: Final = " \t\n\x0b\x0c\r\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""What `str.isspace` calls white space, for a character class of `re` or RE2."""

INVISIBLE: Final = (
    r"\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"
    "\xad\u034f\u061c\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\ufe00-\ufe0f\ufeff\ufff0-\ufff8"
)
"""Characters that show nothing, for a character class: control characters, and those that Unicode
calls default ignorable (zero-width ones, the byte-order mark, marks of direction and of variants),
but for fillers, which are letters, and for tags, which tell flags apart."""

VISIBLE: Final = f"[^{WHITE}{INVISIBLE}]"
"""A pattern for a character that shows."""

UNUSUAL: Final = (
    r"\x00-\x08\x0b-\x1f\x7f-\x{a0}\x{ad}\pM\x{374}-\x{387}\x{61c}\x{958}-\x{f69}"
    r"\x{1161}-\x{11c2}\x{1680}\x{180e}\x{1f71}-\x{1ffd}\x{2000}-\x{200f}\x{2028}-\x{202f}"
    r"\x{205f}-\x{206f}\x{2126}-\x{212b}\x{2329}-\x{232a}\x{2adc}\x{3000}\x{f900}-\x{fb4e}"
    r"\x{feff}\x{fff0}-\x{fff8}\x{1d15e}-\x{1d1c0}\x{2f800}-\x{2fa1d}"
)
"""All characters that `normal_text` may change wherever they are, for a character class of RE2. Few
texts have one: white space but spaces, tabs and line feeds, `INVISIBLE` ones, parts of others."""

_INVISIBLE = re.compile(f"[{INVISIBLE}]+")
_UNUSUAL_TEXT = rf"[{UNUSUAL}]|[\t ]\n|^[\t\n ]|[\t\n ]$"
_UNUSUAL_ID = rf"[\t\n{UNUSUAL}]|^ |  | $"


def normal_text(text: str) -> str:
    """The form that texts share which differ in nothing but their encoding.

    It is in NFC, has no `INVISIBLE` characters, no white space around it or at the end of a line,
    and lines end in LF. NFC joins what Unicode calls canonically equal. NFKC would join more, `x²`
    and `x2` for instance, and is not for names (RFC 8265, section 3.4).
    """
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


def normal_id(text: str) -> str:
    """As `normal_text`, with one space for any white space within."""
    return " ".join(normal_text(text).split())


def as_column(texts: Any) -> pa.ChunkedArray:
    """Texts of a list, a pandas column or index as an Arrow column."""
    found = pa.array(texts)
    column = found if isinstance(found, pa.ChunkedArray) else pa.chunked_array([found])
    return column.cast(pa.large_string())


def normal_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """`normal_text` of texts, missing where they are."""
    return mapped(column, normal_text, _UNUSUAL_TEXT)


def normal_ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """`normal_id` of texts, missing where they are."""
    return mapped(column, normal_id, _UNUSUAL_ID)


def mapped(column: pa.ChunkedArray, form: Callable[[str], str], unusual: str) -> pa.ChunkedArray:
    """`form` of a column's texts; those without anything `unusual` (a pattern) have it already."""
    kind = pa.large_string()
    pieces = []
    for chunk in column.cast(kind).chunks:
        for start in range(0, len(chunk), PIECE):
            texts = chunk.slice(start, PIECE)
            other = pc.fill_null(pc.match_substring_regex(texts, unusual), False)
            found = texts.filter(other).dictionary_encode()
            forms = pa.array(map(form, found.dictionary.to_pylist()), kind)
            pieces.append(pc.replace_with_mask(texts, other, forms.take(found.indices)))
    return pa.chunked_array(pieces, kind)

"""Words of a text, counted the same way in every measure."""

from __future__ import annotations

import re

# Thai, Lao, Burmese, Khmer, kana and Han: scripts written without spaces between words.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003fffd"
)
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_EDGES = re.compile(r"^[\W_]+|[\W_]+$")


def words(text: str) -> list[str]:
    """The words of a text, case-folded, without the punctuation around them.

    A word is what stands between spaces and holds at least one letter or digit. In scripts that
    do not put spaces between words, each character counts as one word: a text is then as long as
    its characters are many, and no such text is taken for a single word.
    """
    stripped = (_EDGES.sub("", token) for token in _TOKEN.findall(text))
    return [word.casefold() for word in stripped if word]


def repetition(text: str, n: int = 3) -> float:
    """The share of word n-grams that occurred before in the same text, in [0, 1).

    0 for a text with fewer than `n` words. Good prose lies below 0.1; a text caught in a loop
    comes close to 1.
    """
    found = words(text)
    total = len(found) - n + 1
    if total < 1:
        return 0.0
    distinct = len({tuple(found[i : i + n]) for i in range(total)})
    return 1.0 - distinct / total

"""Texts, and other spellings of them that mean the same."""

from __future__ import annotations

import random
import unicodedata

from hypothesis import strategies as st

INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\x00"
SPACES = " \t\u00a0\u3000\u2009"
LINE_ENDS = ("\n", "\r\n", "\r", "\u2028", " \n", "\t\r\n")

words = st.lists(
    st.text(st.sampled_from("abcXYZ019.,?\u00e9\u00df\u4f60\u0416\ud55c"), min_size=1, max_size=5),
    min_size=1,
    max_size=5,
).flatmap(
    lambda found: st.lists(
        st.sampled_from([" ", "\n", "  ", "\n    "]), min_size=len(found), max_size=len(found)
    ).map(lambda gaps: "".join(w + g for w, g in zip(found, gaps, strict=True)).strip())
)
"""Words with single or double spaces, line feeds or indented lines between them."""


randoms = st.integers(0, 2**32).map(random.Random)


def respelt(text: str, draw: random.Random, *, spaces: bool = False) -> str:
    """`text` in another Unicode form, with other line ends, white space and invisible characters.

    Args:
        text: What is spelt.
        draw: Decides how.
        spaces: Whether white space within may be any other, and as much of it.
    """
    text = unicodedata.normalize(draw.choice(["NFC", "NFD"]), text)
    end = draw.choice(LINE_ENDS)
    hidden = ["", "", *INVISIBLE]

    def some(characters: str, least: int = 0) -> str:
        return "".join(draw.choices(characters, k=draw.randint(least, 3)))

    written = [
        some(SPACES + "\n", 1) if spaces and c in " \n" else end if c == "\n" else c for c in text
    ]
    edge = SPACES + "\n\r" + INVISIBLE
    return some(edge) + "".join(c + draw.choice(hidden) for c in written) + some(edge)

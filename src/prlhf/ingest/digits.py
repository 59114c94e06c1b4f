"""Ids that lost digits on their way through a spreadsheet or a float."""

import pyarrow as pa
import pyarrow.compute as pc

# 1.29403E+18 and 1.29E18, with a comma in some countries, and 1294030472427835392.0, from 9e15 on.
_ROUNDED = (
    r"^\s*[-+]?(?:[0-9]+(?:(?:[.,][0-9]+)?[eE]\+|[.,][0-9]+[eE])[0-9]{1,3}"
    r"|(?:9[0-9]{15}|[1-9][0-9]{16,})[.,]0+)\s*$"
)
# 1e18: a number, or a name.
_POWER = r"^\s*[0-9]+[eE][0-9]{1,3}\s*$"
_NUMBER = r"^\s*[-+]?[0-9]+(?:[.,][0-9]+)?(?:[eE][-+]?[0-9]+)?\s*$"


def first_rounded(texts: pa.Array | pa.ChunkedArray) -> int | None:
    """The place of the first id that lost digits before it was written as text.

    What is written like `1e5` is a name, unless all of the column are numbers.
    """
    place = _first(pc.match_substring_regex(texts, _ROUNDED))
    if place is None and pc.all(pc.match_substring_regex(texts, _NUMBER)).as_py():
        place = _first(pc.match_substring_regex(texts, _POWER))
    return place


def first_inexact(numbers: pa.Array | pa.ChunkedArray) -> int | None:
    """The place of the first float that stands for several whole numbers, as from 2^53 on."""
    exact = 2.0 ** {16: 11, 32: 24, 64: 53}[numbers.type.bit_width]
    return _first(pc.greater_equal(pc.abs(numbers.cast(pa.float64())), exact))


def _first(flags: pa.Array | pa.ChunkedArray) -> int | None:
    index: int = pc.index(flags, True).as_py()
    return None if index < 0 else index

"""What the readers of whole columns share: how much they read at a time, and what is sound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK: Final = 2**23
"""Bytes read at a time: what bounds the memory besides that for the columns.

With blocks of 32 MiB, the reading of CSV took one and a half times the processor time.
"""

MARK: Final = b"\xef\xbb\xbf"
"""A byte-order mark, which may come before the first line."""


def part_size(longest: int) -> int:
    """Bytes for each of the parts of a block that Arrow works on side by side.

    Args:
        longest: Bytes of the longest record: each must fit in one part, with its end.
    """
    return max(2**21, longest + 2)


def is_utf8(block: bytes) -> bool:
    """Whether all of it is UTF-8, and not only the columns that are read."""
    import pyarrow as pa

    ends = pa.array([0, len(block)], pa.int32()).buffers()[1]
    text = pa.Array.from_buffers(pa.string(), 1, [None, ends, pa.py_buffer(block)])
    return is_valid(text)


def is_valid(found: pa.Array | pa.Table) -> bool:
    """Whether Arrow data are what their types say."""
    import pyarrow as pa

    try:
        found.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True

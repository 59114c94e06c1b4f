"""Stable names and random streams: both depend on content and seed alone, never on order.

`content_hash` names prompts, pairs and texts; `generator` and `shuffled` give every random choice a
stream of its own.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def content_hash(*parts: str) -> str:
    """A stable name for a sequence of strings: 16 hexadecimal digits.

    Each part is hashed with its length, so ("ab", "c") and ("a", "bc") differ.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        # Lone surrogates are legal in JSON escapes: hash them rather than fail on them.
        data = part.encode("utf-8", errors="surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def content_hashes(columns: Sequence[pa.Array]) -> list[str]:
    """`content_hash` of each row of some Arrow columns of text, none of them with a missing value.

    Args:
        columns: Arrays of one length, the parts in their order.
    """
    kind = pa.large_binary()
    parts = []
    for column in columns:
        data = column.cast(pa.large_string()).cast(kind)
        lengths = pc.binary_length(data).to_numpy(zero_copy_only=False).astype("<u8")
        sizes = pa.Array.from_buffers(pa.binary(8), len(data), [None, pa.py_buffer(lengths)])
        parts += [sizes.cast(kind), data]
    whole = pc.binary_join_element_wise(*parts, pa.scalar(b"", kind))
    return [hashlib.blake2b(row, digest_size=8).hexdigest() for row in whole.to_pylist()]


def generator(seed: int, *purpose: str) -> np.random.Generator:
    """A generator whose draws depend on `seed` and `purpose` only.

    Streams of different purposes are independent: another user, say, does not change what is drawn
    for the others.
    """
    return np.random.default_rng([seed, int(content_hash(*purpose), 16)])


def shuffled(names: Iterable[str], seed: int, purpose: str) -> list[str]:
    """Distinct `names` in a random order; adding or removing names leaves that of the others.

    Names are ordered by a hash of seed, purpose and name. A permutation drawn from a generator
    would be as random, but a single new name would change all of it.
    """
    return sorted(set(names), key=lambda name: (content_hash(str(seed), purpose, name), name))

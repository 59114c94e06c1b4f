"""Smaller or noisier versions of a data set, for trial runs and experiments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from prlhf.data.randomness import generator, shuffled
from prlhf.io import content_hash

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

PIECE: Final = 2**16
"""Rows hashed at a time."""


def sample(
    rows: pd.DataFrame, *, seed: int, max_users: int | None, max_rows: int | None
) -> pd.DataFrame:
    """A random sample of the users, then of the rows left, in source order.

    Rows without a user belong to none of those kept by `max_users`.
    """
    if max_users is not None:
        kept = shuffled(rows["user_id"].dropna(), seed, "max_users")[:max_users]
        rows = rows[rows["user_id"].isin(kept)]
    if max_rows is not None and len(rows) > max_rows:
        chosen = generator(seed, "max_rows").choice(len(rows), size=max_rows, replace=False)
        chosen.sort()
        rows = rows.iloc[chosen]
    return rows.reset_index(drop=True)


def flip_labels(rows: pd.DataFrame, *, seed: int, probability: float) -> pd.DataFrame:
    """Swap chosen and rejected, each row with this probability.

    A row's fate hangs on its content and the seed, not on its place: it is the same in a sample
    and in the whole.
    """
    if not probability:
        return rows
    judged = rows[["user_id", "prompt", "chosen", "rejected"]]
    draws = row_hashes(judged, key=content_hash("label_noise", str(seed))) / 2.0**64
    flipped = draws < probability
    return rows.assign(
        chosen=rows["chosen"].mask(flipped, rows["rejected"]),
        rejected=rows["rejected"].mask(flipped, rows["chosen"]),
    )


def row_hashes(rows: pd.DataFrame, key: str | None = None) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A hash of each row's content, whatever the file format or library that stores it.

    Args:
        rows: The rows; their index does not count.
        key: 16 characters that make the hashes others.
    """
    import numpy as np
    import pandas as pd

    # pandas hashes Python objects that it makes of the values: of some rows at a time.
    parts = [rows.iloc[start : start + PIECE] for start in range(0, max(1, len(rows)), PIECE)]
    hashes = [pd.util.hash_pandas_object(part, index=False, hash_key=key) for part in parts]
    return np.concatenate([each.to_numpy() for each in hashes])

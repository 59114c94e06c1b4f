"""Smaller or noisier versions of a data set, for trial runs and experiments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prlhf.data.randomness import generator, shuffled
from prlhf.io import content_hash

if TYPE_CHECKING:
    import pandas as pd


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
    import pandas as pd

    judged = rows[["user_id", "prompt", "chosen", "rejected"]]
    key = content_hash("label_noise", str(seed))
    draws = pd.util.hash_pandas_object(judged, index=False, hash_key=key).to_numpy() / 2.0**64
    flipped = draws < probability
    return rows.assign(
        chosen=rows["chosen"].mask(flipped, rows["rejected"]),
        rejected=rows["rejected"].mask(flipped, rows["chosen"]),
    )

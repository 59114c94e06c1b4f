"""What a trained reward model is asked about, and where its rewards stand.

Apart from the judge that reads them: a change of the judge scores nothing anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prlhf.evaluation.comparisons import comparisons
from prlhf.evaluation.fluency import HEALTHY
from prlhf.evaluation.measured import Tables, reading_order

if TYPE_CHECKING:
    import pandas as pd

REWARDS = "rewards.parquet"
"""`user_id`, `text` (its `text_key`) and `reward` of each answer that a user is asked about."""

ABOUT = "about.json"
"""What the reward model learned from: for judge.json."""


def questions(
    generated: Mapping[str, pd.DataFrame], unseen_users: pd.DataFrame, test: pd.DataFrame
) -> pd.DataFrame:
    """All that the judge stage may ask a reward model about.

    Args:
        generated: `data/generated/<method>.parquet` of each method compared.
        unseen_users: `user_id, group` of the held-out users that are judged for.
        test: Held-out pairs.

    Returns:
        `user_id, prompt, text`, each once: both answers of every comparison, both responses of
        every pair.
    """
    import pandas as pd

    order = reading_order({name: Tables(table) for name, table in generated.items()})
    # Which texts are degenerate is for the judge stage to say.
    healthy = {name: generated[name].assign(state=HEALTHY) for name in order}
    met = comparisons(healthy, order, unseen_users)
    pairs = test.rename(columns={"chosen": "first", "rejected": "second"})
    sides = [
        table[["user_id", "prompt", side]].rename(columns={side: "text"})
        for table in (met, pairs)
        for side in ("first", "second")
    ]
    return pd.concat(sides, ignore_index=True).drop_duplicates(ignore_index=True)

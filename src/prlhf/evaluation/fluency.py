"""Is the generated text still language? The check that preference accuracy cannot make.

DPO lowers the likelihood of both responses while it widens their margin (Pal et al., 2024; Razin
et al., 2024): accuracy can be perfect while the text falls apart. Each generated text is therefore
measured by its negative log-likelihood per token under the frozen base model (nats), by the share
of its word 3-grams that repeat earlier ones, and by whether it is empty or ended by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from prlhf.evaluation.text import repetition, words

if TYPE_CHECKING:
    import pandas as pd

HEALTHY, EMPTY, DEGENERATE = "healthy", "empty", "degenerate"


def measure(
    generated: pd.DataFrame,
    scores: pd.DataFrame | None,
    *,
    base_nll: float | None,
    max_repetition: float,
    max_nll_above_base: float,
) -> pd.DataFrame:
    """Add measures of each text to a table of generated texts.

    A text is *empty* without a letter or digit in it. It is *degenerate* when it repeats itself
    (share of repeated word 3-grams above `max_repetition`) or is unlikely to be language at all
    (nats per token under the base model more than `max_nll_above_base` above the base model's own
    texts). What is merely short, or written without spaces, is neither.

    Args:
        generated: Rows of `data/generated/<method>.parquet`.
        scores: Rows of `data/scores/<method>/generations.parquet`: `generation_id, nll, tokens`
            (nats summed over the text's tokens); None where texts were not scored.
        base_nll: The base model's own mean of nats per token; None where it is not known.
        max_repetition: Share in [0, 1].
        max_nll_above_base: Nats per token.

    Returns:
        `generated` with `words`, `repetition`, `nll` (nats per token; NaN for a text without
        tokens or score) and `state` (healthy, empty or degenerate) added.
    """
    texts = generated["text"].fillna("").astype(str)
    table = generated.assign(
        text=texts,
        words=[len(words(text)) for text in texts],
        repetition=[repetition(text) for text in texts],
        nll=_nll_per_token(generated, scores),
    )
    unlikely = (
        np.zeros(len(table), dtype=bool)
        if base_nll is None
        else (table["nll"] > base_nll + max_nll_above_base).to_numpy()
    )
    looping = (table["repetition"] > max_repetition).to_numpy()
    empty = (table["words"] == 0).to_numpy()
    return table.assign(
        state=np.select([empty, looping | unlikely], [EMPTY, DEGENERATE], default=HEALTHY)
    )


def mean_nll(generated: pd.DataFrame, scores: pd.DataFrame | None) -> float | None:
    """The mean over texts of nats per token; None when no text has a score and a token."""
    values = _nll_per_token(generated, scores)
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def _nll_per_token(generated: pd.DataFrame, scores: pd.DataFrame | None) -> np.ndarray:
    if scores is None:
        return np.full(len(generated), np.nan)
    by_id = scores.drop_duplicates("generation_id").set_index("generation_id")
    rows = by_id.reindex(generated["generation_id"])
    nll = rows["nll"].to_numpy(dtype=np.float64)
    tokens = rows["tokens"].to_numpy(dtype=np.float64)
    return np.divide(nll, tokens, out=np.full(len(rows), np.nan), where=tokens > 0)

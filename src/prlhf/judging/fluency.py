"""Is the generated text still language? The check that preference accuracy cannot make.

DPO lowers the likelihood of both responses while it widens their margin (Pal et al., 2024; Razin
et al., 2024): accuracy can be perfect while the text falls apart. Each generated text is therefore
measured by its negative log-likelihood per token under the frozen base model (nats), by the share
of its word 3-grams that repeat earlier ones, and by whether it is empty or ended by itself.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from prlhf.data import BASE_METHOD
from prlhf.tasks import words

HEALTHY, EMPTY, DEGENERATE = "healthy", "empty", "degenerate"


@dataclass(frozen=True)
class Tables:
    """The files of one method; None for one that does not exist.

    `generated` is `data/generated/<method>.parquet`; `scores` and `pairs` are `generations.parquet`
    and `pairs.parquet` in `data/scores/<method>/`.
    """

    generated: pd.DataFrame | None = None
    scores: pd.DataFrame | None = None
    pairs: pd.DataFrame | None = None


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


def measure_texts(
    generated: pd.DataFrame,
    scores: pd.DataFrame | None,
    base_nll: float | None,
    degenerate: Mapping[str, float],
) -> pd.DataFrame:
    """Add measures of each text to a table of generated texts.

    A text is *empty* if it has no letter or digit. It is *degenerate* if it repeats itself (share
    of repeated word 3-grams above `repetition`) or is unlikely to be language (nats per token under
    the base model more than `nll_above_base` above the base model's own texts). A text that is just
    short, or written without spaces, is neither.

    Args:
        generated: See `Tables`.
        scores: See `Tables`: `generation_id, nll, tokens`, nats summed over the text's tokens.
        base_nll: The base model's own mean of nats per token; None if it is not known.
        degenerate: The limits `repetition` and `nll_above_base`, as in judge.json.

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
    bad = (table["repetition"] > degenerate["repetition"]).to_numpy()
    if base_nll is not None:
        bad = bad | (table["nll"] > base_nll + degenerate["nll_above_base"]).to_numpy()
    empty = (table["words"] == 0).to_numpy()
    return table.assign(state=np.select([empty, bad], [EMPTY, DEGENERATE], default=HEALTHY))


def measure_methods(
    methods: Mapping[str, Tables],
    order: Iterable[str],
    degenerate: Mapping[str, float],
    notes: list[str],
) -> dict[str, pd.DataFrame]:
    """`measure_texts` of every method that has generated texts, by method.

    Args:
        methods, order: The files of each method, and the order of the result.
        degenerate: See `measure_texts`.
        notes: Gets a sentence about each thing that is missing.
    """
    base = methods.get(BASE_METHOD, Tables())
    base_nll = None if base.generated is None else mean_nll(base.generated, base.scores)
    if base_nll is None:
        notes.append(
            "There are no scored texts of the base model to compare with: improbable texts are "
            "not counted as degenerate."
        )
    measured = {}
    for name in order:
        generated = methods[name].generated
        if generated is None:
            notes.append(f"{name}: no generated texts; their measures are left out.")
        else:
            measured[name] = measure_texts(generated, methods[name].scores, base_nll, degenerate)
    return measured


def mean_nll(generated: pd.DataFrame, scores: pd.DataFrame | None) -> float | None:
    """The mean over texts of nats per token; None if no text has both a score and a token."""
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

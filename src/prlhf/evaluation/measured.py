"""The generated texts of all methods, measured, in the order in which they are reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prlhf.evaluation import answers, fluency

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Tables:
    """What one method left behind; None where it left nothing.

    Attributes:
        generated: `data/generated/<method>.parquet`.
        scores: `data/scores/<method>/generations.parquet`.
        pairs: `data/scores/<method>/pairs.parquet`.
    """

    generated: pd.DataFrame | None = None
    scores: pd.DataFrame | None = None
    pairs: pd.DataFrame | None = None


@dataclass(frozen=True)
class Thresholds:
    """When a text counts as degenerate: see `fluency.measure`."""

    repetition: float
    nll_above_base: float


def reading_order(methods: Mapping[str, Tables]) -> dict[str, bool]:
    """The methods in the order of the report, and whether each is personalised."""
    unordered = {
        name: tables.generated is not None and answers.is_personalised(tables.generated)
        for name, tables in methods.items()
    }
    return {name: unordered[name] for name in answers.method_order(unordered)}


def measure(
    methods: Mapping[str, Tables],
    order: Sequence[str],
    thresholds: Thresholds,
    notes: list[str],
) -> dict[str, pd.DataFrame]:
    """The generated texts of each method that has any, with their measures."""
    base = methods.get(answers.BASE, Tables())
    base_nll = None if base.generated is None else fluency.mean_nll(base.generated, base.scores)
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
            continue
        measured[name] = fluency.measure(
            generated,
            methods[name].scores,
            base_nll=base_nll,
            max_repetition=thresholds.repetition,
            max_nll_above_base=thresholds.nll_above_base,
        )
    return measured

"""`reports/headline.json`: the figures to compare runs by, under names that fit into a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prlhf.evaluation.answers import BASELINE
from prlhf.evaluation.labels import figure, method_names
from prlhf.evaluation.tree import DIGITS


def key_figures(metrics: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The key figures of each method; one that was not computed is left out.

    Args:
        metrics: The content of metrics.json.
    """
    found = {}
    for name in method_names(metrics):
        empty = figure(metrics, "fluency", name, "empty")
        degenerate = figure(metrics, "fluency", name, "degenerate")
        figures = {
            "accuracy": figure(metrics, "accuracy", name, "macro"),
            "worst_user": figure(metrics, "accuracy", name, "worst_user"),
            "unseen": figure(metrics, "accuracy", name, "unseen"),
            "win_rate": figure(metrics, "win_rate", f"{name}_vs_{BASELINE}", "win_rate"),
            "words": figure(metrics, "length", name, "mean"),
            "nll": figure(metrics, "fluency", name, "mean_nll"),
            "broken": None
            if empty is None or degenerate is None
            else round(empty + degenerate, DIGITS),
        }
        found[name] = {key: value for key, value in figures.items() if value is not None}
    return found

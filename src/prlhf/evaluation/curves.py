"""The report's drawing of how training went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from prlhf.evaluation.labels import method_label
from prlhf.evaluation.plots import method_colour
from prlhf.evaluation.statistics import Floats
from prlhf.evaluation.svg import Drawing, Scale, tick_label, ticks

if TYPE_CHECKING:
    import pandas as pd

PANELS = (
    ("loss", "Loss"),
    ("accuracy_user", "Accuracy, user's own tokens"),
    ("accuracy_generic", "Accuracy, generic user"),
    ("nll", "Chosen response, nats per token"),
)
WIDTH, HEIGHT = 370, 240
MAX_POINTS = 120
"""Points of a line; longer curves are drawn as means of stretches."""


def training(curves: Mapping[str, pd.DataFrame], names: Sequence[str]) -> list[Markup]:
    """One small chart per measured quantity, all methods in each.

    Args:
        curves: `reports/curves/<method>.csv` of each method: `step, split` and the quantities.
        names: Methods in reading order.
    """
    charts = []
    for column, title in PANELS:
        lines = []
        for name in (name for name in names if name in curves):
            for split in ("train", "validation"):
                points = _series(curves[name], column, split)
                if len(points):
                    lines.append((name, split, points))
        if lines:
            charts.append(_panel(title, column, lines, names))
    return charts


def _series(table: pd.DataFrame, column: str, split: str) -> Floats:
    """`[points, 2]`: step and value, averaged over stretches where points are many."""
    if column not in table or "step" not in table:
        return np.empty((0, 2))
    rows = table[table["split"] == split] if "split" in table else table
    points = rows[["step", column]].to_numpy(dtype=np.float64)
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) <= MAX_POINTS:
        return points
    return np.array([part.mean(axis=0) for part in np.array_split(points, MAX_POINTS)])


def _panel(
    title: str,
    column: str,
    lines: Sequence[tuple[str, str, Floats]],
    names: Sequence[str],
) -> Markup:
    drawing = Drawing(WIDTH, HEIGHT, f"{title} during training, by method")
    together = np.concatenate([points for _, _, points in lines])
    low, high = float(together[:, 1].min()), float(together[:, 1].max())
    if column.startswith("accuracy"):
        low, high = min(low, 0.4), 1.0
    margin = 0.05 * ((high - low) or abs(high) or 1.0)
    x = Scale(0.0, float(together[:, 0].max()), 44, WIDTH - 12)
    y = Scale(low - margin, high + margin, HEIGHT - 30, 34)
    drawing.text(0, 15, title, kind="block")
    for value in ticks(y.low, y.high, 4):
        drawing.line(44, y(value), WIDTH - 12, y(value), kind="grid")
        drawing.text(36, y(value) + 4, tick_label(value), kind="tick", anchor="end")
    for value in ticks(0.0, x.high, 4):
        drawing.text(x(value), HEIGHT - 10, tick_label(value), kind="tick", anchor="middle")
    for name, split, points in lines:
        colour = method_colour(name, names)
        placed = [(x(float(step)), y(float(value))) for step, value in points]
        held_out = split == "validation"
        drawing.path(
            placed, stroke=colour, opacity=1.0 if held_out else 0.4, width=2.2 if held_out else 1.3
        )
        if held_out and len(placed) <= 40:
            for px, py in placed:
                drawing.mark(0, px, py, 2.8, fill=colour, tip=f"{method_label(name)}, validation")
    return drawing.render()

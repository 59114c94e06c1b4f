"""The report's drawings: accuracy, lengths, win rates, the user map, training curves.

Each function takes plain tables and returns finished SVG, or None if there is nothing to draw;
`names` are the methods in reading order, which decides their colours. Drawings show every user
while users are few and a distribution when they are many.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray

from prlhf.metrics.reading import figure, groups_by_size, method_label, percent
from prlhf.report.svg import Drawing, Scale, abridged, tick_label, ticks

Floats = NDArray[np.float64]

WIDTH = 760
LEFT, RIGHT = 236, 70
ROW, GAP = 34, 16
MAX_GROUPS = 8
"""Groups drawn one by one; the smallest beyond that are drawn together."""

DOT = 4.6
UNSEEN = "held-out users"
OTHERS = "other groups"

CURVES = (
    ("loss", "Loss"),
    ("accuracy_user", "Accuracy, user's own tokens"),
    ("accuracy_generic", "Accuracy, generic user"),
    ("nll", "Chosen response, nats per token"),
)
CURVE_WIDTH, CURVE_HEIGHT = 370, 240
MAX_POINTS = 120
"""Points of a curve; a longer one is drawn as the means of stretches."""


def method_color(name: str, names: Sequence[str]) -> str:
    """The CSS color of a method, by its place among `names`."""
    return f"var(--m{min(list(names).index(name), 7)})"


@dataclass(frozen=True)
class _Row:
    """A strip of a chart: one method's values in one block. Without tips they are never dots."""

    block: str
    method: str
    values: Floats
    tips: Sequence[str]


def draw_accuracy(table: pd.DataFrame, names: Sequence[str]) -> Markup | None:
    """Each user's accuracy by method, in blocks by preference group.

    Args:
        table: `user_id, group, seen, method, accuracy, pairs`.
    """
    accuracy = map(percent, table["accuracy"])
    parts = zip(table["user_id"], accuracy, table["pairs"], strict=True)
    tips = [f"{user}: {value} of {pairs} pairs" for user, value, pairs in parts]
    rows = _rows(table.assign(tip=tips), names, "accuracy")
    if not rows:
        return None
    scale = Scale(0.0, 1.0, LEFT, WIDTH - RIGHT)
    marks = [(value, percent(value)) for value in (0.0, 0.25, 0.5, 0.75, 1.0)]
    title = "Preference accuracy of each user, by method and preference group"
    drawing = _strips(rows, names, scale, marks, title, percent)
    x = scale(0.5)
    drawing.line(x, 24, x, drawing.height - 26, kind="chance")
    return drawing.render()


def draw_lengths(table: pd.DataFrame, names: Sequence[str]) -> Markup | None:
    """The distribution of answer lengths by preference group and method.

    Args:
        table: `method, group, words`, one row per answer.
    """
    rows = _rows(table.assign(seen=True), names, "words")
    if not rows:
        return None
    top = max(float(np.quantile(np.concatenate([row.values for row in rows]), 0.995)), 1.0)
    scale = Scale(0.0, top * 1.04, LEFT, WIDTH - RIGHT)
    marks = [(value, tick_label(value)) for value in ticks(0.0, scale.high, 6)]
    title = "Words per answer, by method and preference group of the user"
    return _strips(rows, names, scale, marks, title, "{:.0f}".format).render()


def _rows(table: pd.DataFrame, names: Sequence[str], column: str) -> list[_Row]:
    """A strip for each block and method that has values."""
    rows = []
    for block, part in _blocks(table):
        for name in names:
            own = part[part["method"] == name]
            if len(own):
                tips = list(own["tip"]) if "tip" in own else []
                rows.append(_Row(block, name, own[column].to_numpy(dtype=np.float64), tips))
    return rows


def _blocks(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The table by group of seen users, largest first, then users held out of training."""
    seen = table[table["seen"].astype(bool)]
    known = seen["group"].notna()
    sizes = seen.loc[known, "group"].value_counts()
    order = sorted(sizes.index, key=lambda group: (-sizes[group], str(group)))
    shown = order if len(order) <= MAX_GROUPS else order[: MAX_GROUPS - 1]
    for group in shown:
        yield str(group), seen[seen["group"] == group]
    rest = seen[~seen["group"].isin(shown)]
    if len(rest):
        yield (OTHERS if shown else "all users"), rest
    held_out = table[~table["seen"].astype(bool)]
    if len(held_out):
        yield UNSEEN, held_out


def _strips(
    rows: Sequence[_Row],
    names: Sequence[str],
    scale: Scale,
    marks: Sequence[tuple[float, str]],
    title: str,
    label: Callable[[float], str],
) -> Drawing:
    """Strips of dots or of bars, with the mean of each, in blocks."""
    height = 30 + len(rows) * ROW + (len({row.block for row in rows}) - 1) * GAP + 30
    drawing = Drawing(WIDTH, height, title)
    for value, text in marks:
        x = scale(value)
        drawing.line(x, 24, x, height - 26, kind="grid")
        drawing.text(x, height - 8, text, kind="tick", anchor="middle")
    drawing.text(WIDTH - 4, 14, "mean", kind="tick", anchor="end")
    y, previous = 30.0, None
    for row in rows:
        if row.block != previous:
            if previous is not None:
                y += GAP
                drawing.line(0, y - GAP / 2, WIDTH, y - GAP / 2)
            drawing.text(0, y + ROW / 2 + 4, abridged(row.block, 16), kind="block")
            previous = row.block
        color = method_color(row.method, names)
        middle = y + ROW / 2
        drawing.text(LEFT - 14, middle + 4, abridged(method_label(row.method), 17), anchor="end")
        drawing.line(scale.start, middle, scale.end, middle, kind="grid")
        if not _dots(drawing, row, scale, middle, color):
            _histogram(drawing, row, scale, y, color)
        mean = float(row.values.mean())
        x = scale(min(mean, scale.high))
        drawing.line(x, y + 5, x, y + ROW - 5, kind="mean")
        drawing.text(WIDTH - 4, middle + 4, label(mean), kind="value", anchor="end", fill=color)
        y += ROW
    return drawing


def _dots(drawing: Drawing, row: _Row, scale: Scale, middle: float, color: str) -> bool:
    """Draw each value as a dot, equal ones stacked; False (and nothing drawn) if too many."""
    places = np.array([scale(float(value)) for value in row.values])
    slots = np.round((places - scale.start) / (2 * DOT)).astype(int)
    totals = dict(zip(*np.unique(slots, return_counts=True), strict=True))
    highest = int(max(totals.values()))
    if not row.tips or highest > 16 or len(row.values) > 200:
        return False
    step = min(2 * DOT, (ROW - 2 * DOT) / max(highest - 1, 1))
    filled = dict.fromkeys(totals, 0)
    for i in np.argsort(row.values, kind="stable"):
        slot = slots[i]
        y = middle + (filled[slot] - (int(totals[slot]) - 1) / 2) * step
        filled[slot] += 1
        drawing.mark(0, places[i], y, DOT, fill=color, opacity=0.8, tip=row.tips[i])
    return True


def _histogram(drawing: Drawing, row: _Row, scale: Scale, top: float, color: str) -> None:
    """Draw how often values occur, as bars that stand on the strip's lower edge."""
    clipped = np.minimum(row.values, scale.high)
    counts, edges = np.histogram(clipped, bins=40, range=(scale.low, scale.high))
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            x, width = scale(float(low)), scale(float(high)) - scale(float(low))
            tall = max((ROW - 6) * float(count) / float(counts.max()), 1.0)
            tip = f"{low:.3g}\N{EN DASH}{high:.3g}: {count}"
            base = top + ROW - 3
            drawing.rect(x + 0.5, base - tall, width - 1, tall, fill=color, opacity=0.65, tip=tip)


def draw_wins(metrics: Mapping[str, Any], pair: str, names: Sequence[str]) -> Markup | None:
    """Wins, ties and losses of one comparison: all users, each group, held-out users.

    `pair` is a key of `win_rate` in metrics.json, `<method>_vs_<other>`.
    """
    tree = metrics.get("win_rate", {}).get(pair)
    if not tree:
        return None
    name, _, other = pair.rpartition("_vs_")
    at = ("win_rate", pair)
    rows: list[tuple[str, tuple[str, ...]]] = [("all seen users", at)]
    groups = [group for group in groups_by_size(metrics) if group in tree.get("groups", {})]
    rows += [(group, (*at, "groups", group)) for group in groups[:MAX_GROUPS]]
    if "unseen" in tree:
        rows.append((UNSEEN, (*at, "unseen")))
    title = f"{method_label(name)} against {method_label(other)}: wins, ties and losses"
    drawing = Drawing(WIDTH, 34 + len(rows) * ROW + 4, title)
    kinds = (
        ("win", f"{method_label(name)} wins", method_color(name, names)),
        ("tie", "tie", "var(--tie)"),
        ("loss", f"{method_label(other)} wins", method_color(other, names)),
    )
    x = float(LEFT)
    for _, label, color in kinds:
        drawing.rect(x, 6, 12, 12, fill=color, radius=3)
        drawing.text(x + 18, 16, label, kind="tick")
        x += 34 + 7.0 * len(label)
    scale = Scale(0.0, 1.0, LEFT, WIDTH - 4)
    for i, (label, path) in enumerate(rows):
        y = 34 + i * ROW
        drawing.text(0, y + ROW / 2 + 2, abridged(label, 24), kind="block" if i == 0 else "label")
        start = 0.0
        for kind, what, color in kinds:
            share = figure(metrics, *path, kind) or 0.0
            left, right = scale(start), scale(start + share)
            tip = f"{label}, {what}: {percent(share)}"
            drawing.rect(left, y + 3, right - left - 1, ROW - 10, fill=color, tip=tip)
            if share >= 0.07:
                x, base = (left + right) / 2, y + ROW / 2 + 2
                drawing.text(x, base, percent(share), kind="on", anchor="middle")
            start += share
    return drawing.render()


def draw_user_map(table: pd.DataFrame, method: str, groups: Sequence[str]) -> Markup | None:
    """The users' embeddings in two dimensions, by preference group.

    Args:
        table: `user_id, group, x, y` of one method; a null user is the generic one.
        groups: Preference groups, which decide colours and shapes.
    """
    finite = np.isfinite(table["x"]) & np.isfinite(table["y"])
    table = table.loc[finite, ["user_id", "group", "x", "y"]].fillna({"user_id": "", "group": ""})
    known = table[table["user_id"] != ""]
    if known.empty:
        return None
    x, y, height = _equal_scales(table)
    title = f"Map of the user embeddings of {method_label(method)}, by preference group"
    drawing = Drawing(WIDTH, height, title)
    drawing.rect(0, 0, WIDTH, height, fill="var(--inset)", radius=10)
    shown = list(groups)[: MAX_GROUPS - 1 if len(groups) > MAX_GROUPS else MAX_GROUPS]
    labels = _Labels(drawing)
    for _, _, value_x, value_y in table[table["user_id"] == ""].to_numpy().tolist():
        px, py = x(value_x), y(value_y)
        for dx, dy in ((7, 0), (0, 7)):
            drawing.line(px - dx, py - dy, px + dx, py + dy, kind="generic")
        labels.put("generic user", px, py, "value")
    size, opacity = (3.2, 0.5) if len(known) > 400 else (6, 0.85)
    for user, group, value_x, value_y in known.to_numpy().tolist():
        px, py = x(value_x), y(value_y)
        place = shown.index(group) if group in shown else len(shown)
        tip = f"{user} ({group})" if group else user
        color = _group_color(place)
        drawing.mark(place if shown else 0, px, py, size, fill=color, opacity=opacity, tip=tip)
        if len(known) <= 40:
            labels.put(abridged(user, 18), px, py, "tick")
    others = [OTHERS] if shown and not known["group"].isin(shown).all() else []
    left = 18.0
    for place, group in enumerate([*shown, *others]):
        drawing.mark(place, left, 18, 5, fill=_group_color(place))
        drawing.text(left + 11, 22, abridged(group, 18), kind="tick")
        left += 34 + 6.4 * len(abridged(group, 18))
    return drawing.render()


def _group_color(place: int) -> str:
    return f"var(--g{min(place, MAX_GROUPS - 1)})"


class _Labels:
    """Puts labels beside points if there is room, and leaves out those that would overlap."""

    def __init__(self, drawing: Drawing) -> None:
        self._drawing = drawing
        self._taken: list[tuple[float, float, float, float]] = []

    def put(self, text: str, x: float, y: float, kind: str) -> None:
        width = 6.8 * len(text)
        for anchor, start, left, base in (
            ("start", x + 10, x + 10, y + 4),
            ("end", x - 10, x - 10 - width, y + 4),
            ("middle", x, x - width / 2, y - 11),
            ("middle", x, x - width / 2, y + 20),
        ):
            right, top, bottom = left + width, base - 11, base + 3
            inside = left > 4 and right < self._drawing.width - 4
            overlaps = any(
                left < box[2] and box[0] < right and top < box[3] and box[1] < bottom
                for box in self._taken
            )
            if inside and not overlaps:
                self._taken.append((left, top, right, bottom))
                self._drawing.text(start, base, text, kind=kind, anchor=anchor)
                return


def _equal_scales(table: pd.DataFrame) -> tuple[Scale, Scale, float]:
    """Scales of equal units in both directions, so that distances compare, and the height."""
    side, top, bottom, tallest = 70.0, 50.0, 34.0, 430.0
    xs, ys = table["x"].to_numpy(dtype=float), table["y"].to_numpy(dtype=float)
    across, down = WIDTH - 2 * side, tallest - top - bottom
    unit = max(np.ptp(xs) / across, np.ptp(ys) / down) or 1.0
    down = max(float(np.ptp(ys) / unit), 140.0)
    mx, my = (xs.min() + xs.max()) / 2, (ys.min() + ys.max()) / 2
    half_x, half_y = unit * across / 2, unit * down / 2
    return (
        Scale(mx - half_x, mx + half_x, side, side + across),
        Scale(my - half_y, my + half_y, top + down, top),
        top + down + bottom,
    )


def draw_training(curves: Mapping[str, pd.DataFrame], names: Sequence[str]) -> list[Markup]:
    """One small chart per measured quantity, all methods in each.

    Args:
        curves: `reports/curves/<method>.csv` of each method: `step, split` and the quantities.
    """
    charts = []
    for column, title in CURVES:
        lines = [
            (name, split, points)
            for name in names
            if name in curves
            for split in ("train", "validation")
            if len(points := _series(curves[name], column, split))
        ]
        if lines:
            charts.append(_curves(title, column.startswith("accuracy"), lines, names))
    return charts


def _series(table: pd.DataFrame, column: str, split: str) -> Floats:
    """`[points, 2]`: step and value, averaged over stretches if there are many points."""
    if column not in table or "step" not in table:
        return np.empty((0, 2))
    rows = table[table["split"] == split] if "split" in table else table
    points = rows[["step", column]].to_numpy(dtype=np.float64)
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) <= MAX_POINTS:
        return points
    return np.array([part.mean(axis=0) for part in np.array_split(points, MAX_POINTS)])


def _curves(
    title: str, share: bool, lines: Sequence[tuple[str, str, Floats]], names: Sequence[str]
) -> Markup:
    drawing = Drawing(CURVE_WIDTH, CURVE_HEIGHT, f"{title} during training, by method")
    together = np.concatenate([points for _, _, points in lines])
    low, high = float(together[:, 1].min()), float(together[:, 1].max())
    if share:
        low, high = min(low, 0.4), 1.0
    margin = 0.05 * ((high - low) or abs(high) or 1.0)
    left, right = 44, CURVE_WIDTH - 12
    x = Scale(0.0, float(together[:, 0].max()), left, right)
    y = Scale(low - margin, high + margin, CURVE_HEIGHT - 30, 34)
    drawing.text(0, 15, title, kind="block")
    for value in ticks(y.low, y.high, 4):
        drawing.line(left, y(value), right, y(value), kind="grid")
        drawing.text(36, y(value) + 4, tick_label(value), kind="tick", anchor="end")
    for value in ticks(0.0, x.high, 4):
        drawing.text(x(value), CURVE_HEIGHT - 10, tick_label(value), kind="tick", anchor="middle")
    for name, split, points in lines:
        color, tip = method_color(name, names), f"{method_label(name)}, validation"
        placed = [(x(float(step)), y(float(value))) for step, value in points]
        if split == "train":
            drawing.path(placed, stroke=color, opacity=0.4, width=1.3)
            continue
        drawing.path(placed, stroke=color, opacity=1.0, width=2.2)
        if len(placed) <= 40:
            for px, py in placed:
                drawing.mark(0, px, py, 2.8, fill=color, tip=tip)
    return drawing.render()

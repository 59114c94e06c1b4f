"""The report's drawings of how users are served: accuracy, win rates, lengths, the user map.

Each function takes plain tables and returns finished SVG, or None where there is nothing to draw.
Drawings show every user while users are few and a distribution when they are many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from prlhf.evaluation.labels import (
    figure,
    groups_by_size,
    method_label,
    percent,
)
from prlhf.evaluation.statistics import Floats
from prlhf.evaluation.svg import Drawing, Scale, clip, tick_label, ticks

if TYPE_CHECKING:
    import pandas as pd

WIDTH = 760
LEFT = 236
RIGHT = 70
ROW = 34
GAP = 16
MAX_GROUPS = 8
"""Groups drawn one by one; the smallest beyond that are drawn together."""

DOT = 4.6
UNSEEN = "held-out users"
OTHERS = "other groups"


def method_colour(name: str, names: Sequence[str]) -> str:
    """The CSS colour of a method, by its place among `names`."""
    return f"var(--m{min(list(names).index(name), 7)})"


@dataclass(frozen=True)
class _Row:
    """One horizontal strip of a chart: the values of one method within one block."""

    block: str
    method: str
    values: Floats
    tips: Sequence[str]


def user_accuracy(table: pd.DataFrame, names: Sequence[str]) -> Markup | None:
    """Each user's accuracy by method, in blocks by preference group.

    Args:
        table: `user_id, group, seen, method, accuracy, pairs`.
        names: Methods in reading order.
    """
    rows = []
    for block, part in _blocks(table):
        for name in names:
            own = part[part["method"] == name]
            if len(own):
                tips = [
                    f"{user}: {percent(value)} of {pairs} pairs"
                    for user, value, pairs in zip(
                        own["user_id"], own["accuracy"], own["pairs"], strict=True
                    )
                ]
                values = own["accuracy"].to_numpy(dtype=np.float64)
                rows.append(_Row(block, name, values, tips))
    if not rows:
        return None
    scale = Scale(0.0, 1.0, LEFT, WIDTH - RIGHT)
    marks = [(value, percent(value)) for value in (0.0, 0.25, 0.5, 0.75, 1.0)]
    title = "Preference accuracy of each user, by method and preference group"
    drawing = _strips(rows, names, scale, marks, title, label=percent)
    x = scale(0.5)
    drawing.line(x, 24, x, drawing.height - 26, kind="chance")
    return drawing.render()


def lengths(table: pd.DataFrame, names: Sequence[str]) -> Markup | None:
    """The distribution of answer lengths by preference group and method.

    Args:
        table: `method, group, words`, one row per answer.
        names: Methods in reading order.
    """
    rows = []
    for block, part in _blocks(table.assign(seen=True)):
        for name in names:
            values = part.loc[part["method"] == name, "words"].to_numpy(dtype=np.float64)
            if len(values):
                rows.append(_Row(block, name, values, ()))
    if not rows:
        return None
    top = max(float(np.quantile(np.concatenate([row.values for row in rows]), 0.995)), 1.0)
    scale = Scale(0.0, top * 1.04, LEFT, WIDTH - RIGHT)
    marks = [(value, tick_label(value)) for value in ticks(0.0, scale.high, 6)]
    title = "Words per answer, by method and preference group of the user"
    return _strips(
        rows, names, scale, marks, title, label=lambda value: f"{value:.0f}", dots=False
    ).render()


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
    *,
    label: Any,
    dots: bool = True,
) -> Drawing:
    """Strips of dots or of bars, with the mean of each, in blocks."""
    blocks = list(dict.fromkeys(row.block for row in rows))
    height = 30 + len(rows) * ROW + (len(blocks) - 1) * GAP + 30
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
                drawing.line(0, y - GAP / 2, WIDTH, y - GAP / 2, kind="rule")
            drawing.text(0, y + ROW / 2 + 4, clip(row.block, 16), kind="block")
            previous = row.block
        colour = method_colour(row.method, names)
        middle = y + ROW / 2
        drawing.text(LEFT - 14, middle + 4, clip(method_label(row.method), 17), anchor="end")
        drawing.line(scale.start, middle, scale.end, middle, kind="grid")
        if not (dots and _dots(drawing, row, scale, middle, colour)):
            _histogram(drawing, row, scale, y, colour)
        mean = float(row.values.mean())
        x = scale(min(mean, scale.high))
        drawing.line(x, y + 5, x, y + ROW - 5, kind="mean")
        drawing.text(WIDTH - 4, middle + 4, label(mean), kind="value", anchor="end", fill=colour)
        y += ROW
    return drawing


def _dots(drawing: Drawing, row: _Row, scale: Scale, middle: float, colour: str) -> bool:
    """Draw each value as a dot, equal ones stacked; False (and nothing drawn) if too many."""
    slots = np.round((scale_array(scale, row.values) - scale.start) / (2 * DOT)).astype(int)
    _, counts = np.unique(slots, return_counts=True)
    highest = int(counts.max())
    if highest > 16 or len(row.values) > 200:
        return False
    step = min(2 * DOT, (ROW - 2 * DOT) / max(highest - 1, 1))
    filled: dict[int, int] = {}
    totals = dict(zip(*np.unique(slots, return_counts=True), strict=True))
    order = np.argsort(row.values, kind="stable")
    for i in order:
        slot = int(slots[i])
        place = filled.get(slot, 0)
        filled[slot] = place + 1
        offset = (place - (int(totals[slot]) - 1) / 2) * step
        x = scale(float(row.values[i]))
        drawing.mark(0, x, middle + offset, DOT, fill=colour, opacity=0.8, tip=row.tips[i])
    return True


def _histogram(drawing: Drawing, row: _Row, scale: Scale, top: float, colour: str) -> None:
    """Draw how often values occur, as bars that stand on the strip's lower edge."""
    bins = 40
    clipped = np.minimum(row.values, scale.high)
    counts, edges = np.histogram(clipped, bins=bins, range=(scale.low, scale.high))
    full = ROW - 6
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            x, width = scale(float(low)), scale(float(high)) - scale(float(low))
            tall = max(full * float(count) / float(counts.max()), 1.0)
            tip = f"{low:.3g}\N{EN DASH}{high:.3g}: {count}"
            drawing.rect(
                x + 0.5, top + ROW - 3 - tall, width - 1, tall, fill=colour, opacity=0.65, tip=tip
            )


def scale_array(scale: Scale, values: Floats) -> Floats:
    """`scale` of each value."""
    return np.array([scale(float(value)) for value in values])


def wins(metrics: Mapping[str, Any], pair: str, names: Sequence[str]) -> Markup | None:
    """Wins, ties and losses of one comparison: all users, each group, held-out users.

    Args:
        metrics: Content of metrics.json.
        pair: A key of `win_rate`, `<method>_vs_<other>`.
        names: Methods in reading order.
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
    height = 34 + len(rows) * ROW + 4
    title = f"{method_label(name)} against {method_label(other)}: wins, ties and losses"
    drawing = Drawing(WIDTH, height, title)
    kinds = (
        ("win", f"{method_label(name)} wins", method_colour(name, names)),
        ("tie", "tie", "var(--tie)"),
        ("loss", f"{method_label(other)} wins", method_colour(other, names)),
    )
    x = float(LEFT)
    for _, label, colour in kinds:
        drawing.rect(x, 6, 12, 12, fill=colour, radius=3)
        drawing.text(x + 18, 16, label, kind="tick")
        x += 34 + 7.0 * len(label)
    scale = Scale(0.0, 1.0, LEFT, WIDTH - 4)
    for i, (label, path) in enumerate(rows):
        y = 34 + i * ROW
        drawing.text(0, y + ROW / 2 + 2, clip(label, 24), kind="block" if i == 0 else "label")
        start = 0.0
        for kind, what, colour in kinds:
            share = figure(metrics, *path, kind) or 0.0
            left, right = scale(start), scale(start + share)
            tip = f"{label}, {what}: {percent(share)}"
            drawing.rect(left, y + 3, right - left - 1, ROW - 10, fill=colour, tip=tip)
            if share >= 0.07:
                drawing.text(
                    (left + right) / 2, y + ROW / 2 + 2, percent(share), kind="on", anchor="middle"
                )
            start += share
    return drawing.render()


def user_map(table: pd.DataFrame, method: str, groups: Sequence[str]) -> Markup | None:
    """The users' embeddings in two dimensions, by preference group.

    Args:
        table: `user_id, group, x, y` of one method; a null user is the generic one.
        method: Whose embeddings these are.
        groups: Preference groups, which decide colours and shapes.
    """
    table = table[np.isfinite(table["x"]) & np.isfinite(table["y"])]
    known = table[table["user_id"].notna()]
    if known.empty:
        return None
    x, y, height = _equal_scales(table)
    title = f"Map of the user embeddings of {method_label(method)}, by preference group"
    drawing = Drawing(WIDTH, height, title)
    drawing.rect(0, 0, WIDTH, height, fill="var(--inset)", radius=10)
    few, many = len(known) <= 40, len(known) > 400
    shown = list(groups)[: MAX_GROUPS - 1 if len(groups) > MAX_GROUPS else MAX_GROUPS]
    labels = _Labels(drawing)
    for _, _, px, py in _placed(table[table["user_id"].isna()], x, y):
        for dx, dy in ((7, 0), (0, 7)):
            drawing.line(px - dx, py - dy, px + dx, py + dy, kind="generic")
        labels.put("generic user", px, py, "value")
    for user, group, px, py in _placed(known, x, y):
        place = shown.index(group) if group in shown else len(shown)
        drawing.mark(
            place if shown else 0,
            px,
            py,
            3.2 if many else 6,
            fill=f"var(--g{min(place, MAX_GROUPS - 1)})",
            opacity=0.5 if many else 0.85,
            tip=f"{user} ({group})" if group else user,
        )
        if few:
            labels.put(clip(user, 18), px, py, "tick")
    _legend(drawing, shown, known)
    return drawing.render()


class _Labels:
    """Puts labels beside points where there is room, and leaves out those that would overlap."""

    def __init__(self, drawing: Drawing) -> None:
        self._drawing = drawing
        self._taken: list[tuple[float, float, float, float]] = []

    def put(self, text: str, x: float, y: float, kind: str) -> None:
        width = 6.8 * len(text)
        for anchor, left, base in (
            ("start", x + 10, y + 4),
            ("end", x - 10 - width, y + 4),
            ("middle", x - width / 2, y - 11),
            ("middle", x - width / 2, y + 20),
        ):
            box = (left, base - 11, left + width, base + 3)
            inside = box[0] > 4 and box[2] < self._drawing.width - 4
            if inside and not any(_overlap(box, other) for other in self._taken):
                self._taken.append(box)
                start = {"start": left, "middle": x, "end": x - 10}[anchor]
                self._drawing.text(start, base, text, kind=kind, anchor=anchor)
                return


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _placed(table: pd.DataFrame, x: Scale, y: Scale) -> Iterator[tuple[str, str, float, float]]:
    """User, group (empty if unknown) and place of each row."""
    names = (table[column].fillna("").astype(str) for column in ("user_id", "group"))
    places = (
        scale_array(scale, table[column].to_numpy(dtype=np.float64)).tolist()
        for scale, column in ((x, "x"), (y, "y"))
    )
    yield from zip(*names, *places, strict=True)


def _equal_scales(table: pd.DataFrame) -> tuple[Scale, Scale, float]:
    """Scales of equal units in both directions, as distances are to be compared, and the height."""
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


def _legend(drawing: Drawing, shown: Sequence[str], known: pd.DataFrame) -> None:
    entries = [*shown]
    if shown and not known["group"].isin(list(shown)).all():
        entries.append(OTHERS)
    x = 18.0
    for place, group in enumerate(entries):
        drawing.mark(place, x, 18, 5, fill=f"var(--g{min(place, MAX_GROUPS - 1)})")
        drawing.text(x + 11, 22, clip(group, 18), kind="tick")
        x += 34 + 6.4 * len(clip(group, 18))

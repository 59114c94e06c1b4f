"""The result in a dozen lines of plain text, for the end of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prlhf.evaluation.answers import BASELINE, PERSONALISED
from prlhf.evaluation.labels import (
    figure,
    groups_by_size,
    interval,
    method_label,
    method_names,
    percent,
)

MAX_COMPARISONS = 6
"""Of more comparisons of methods only those of the main one, and those with dpo, get a line."""

MAX_GROUPS = 3
"""More groups than these get no columns of their own; the whole table is in the report."""


def render(metrics: Mapping[str, Any]) -> str:
    """A table of methods and a line for each comparison, at most 100 columns wide.

    Args:
        metrics: The content of reports/metrics.json.
    """
    groups = groups_by_size(metrics)
    columns = groups if 1 < len(groups) <= MAX_GROUPS else []
    heads = [_clip(group) for group in columns]
    table = [
        ["", "accuracy", "", *["" for _ in heads], "words", *["" for _ in heads[1:]], "text", ""],
        ["", "mean", "worst user", *heads, *(heads or ["mean"]), "nats/token", "broken"],
        *[_row(metrics, name, columns) for name in method_names(metrics)],
    ]
    lines = _align(table)
    lines.append("(broken: empty or degenerate)")
    lines += _gains(metrics) + _comparisons(metrics)
    return "\n".join(lines)


def _row(metrics: Mapping[str, Any], name: str, groups: Sequence[str]) -> list[str]:
    def share(*path: str) -> str:
        value = figure(metrics, *path)
        return "-" if value is None else percent(value)

    def plain(digits: int, *path: str) -> str:
        value = figure(metrics, *path)
        return "-" if value is None else f"{value:.{digits}f}"

    empty = figure(metrics, "fluency", name, "empty")
    degenerate = figure(metrics, "fluency", name, "degenerate")
    lengths: list[tuple[str, ...]] = [("groups", group) for group in groups] or [("mean",)]
    return [
        _clip(method_label(name), 17),
        share("accuracy", name, "macro"),
        share("accuracy", name, "worst_user"),
        *[share("accuracy", name, "groups", group) for group in groups],
        *[plain(0, "length", name, *place) for place in lengths],
        plain(2, "fluency", name, "mean_nll"),
        "-" if empty is None or degenerate is None else percent(empty + degenerate),
    ]


def _clip(text: str, most: int = 11) -> str:
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines: the first column to the left, the others to the right."""
    # The first row holds the titles of groups of columns, which may reach over their neighbours.
    widths = [max(map(len, column)) for column in zip(*rows[1:], strict=True)]
    lines = []
    for row in rows[1:]:
        first, *rest = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *[cell.rjust(width) for cell, width in rest]]
        lines.append("  ".join(cells).rstrip())
    titles, start = "", 0
    for title, text, width in zip(rows[0], rows[1], widths, strict=True):
        if title:
            titles = titles.ljust(start + width - len(text)) + title
        start += width + 2
    return [titles, *lines]


def _shown(pairs: Iterable[str]) -> list[str]:
    """The comparisons `<method>_vs_<other>` that get a line."""
    listed = sorted(pairs)
    if len(listed) <= MAX_COMPARISONS:
        return listed
    return [
        pair
        for pair in listed
        if pair.startswith(f"{PERSONALISED}_vs_") or pair.endswith(f"_vs_{BASELINE}")
    ]


def _gains(metrics: Mapping[str, Any]) -> list[str]:
    lines = []
    gains = metrics.get("accuracy_gain", {})
    for pair in _shown(gains):
        gain, (name, _, other) = gains[pair], pair.rpartition("_vs_")
        who = f"{method_label(name)} over {method_label(other)}"
        spreads = []
        for path, what in ((("same_users",), "these users"), ((), "other users")):
            ends = interval(metrics, "accuracy_gain", pair, *path)
            if ends is not None:
                spreads.append(f"{100 * ends[0]:+.0f} to {100 * ends[1]:+.0f} for {what}")
        spread = f" ({', '.join(spreads)})" if spreads else ""
        lines.append(f"{who}: {100 * gain:+.0f} points of accuracy{spread}")
    return lines


def _comparisons(metrics: Mapping[str, Any]) -> list[str]:
    lines = []
    rates = metrics.get("win_rate", {})
    for pair in _shown(rates):
        tree, (name, _, other) = rates[pair], pair.rpartition("_vs_")
        parts = [_win_rate(metrics, "", "win_rate", pair)]
        groups = [group for group in groups_by_size(metrics) if group in tree.get("groups", {})]
        if 1 < len(groups) <= MAX_GROUPS:
            parts += [
                _win_rate(metrics, f"{_clip(group)} ", "win_rate", pair, "groups", group)
                for group in groups
            ]
        who = f"{method_label(name)} against {method_label(other)}"
        lines.append(f"{who}, wins: {', '.join(part for part in parts if part)}")
    return lines


def _win_rate(metrics: Mapping[str, Any], label: str, *path: str) -> str:
    value, tie = figure(metrics, *path, "win_rate"), figure(metrics, *path, "tie")
    if value is None:
        return f"{label}all tied" if tie else ""
    return f"{label}{percent(value)}" + (f" (ties {percent(tie)})" if tie else "")

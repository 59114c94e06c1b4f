"""The result in a dozen lines of plain text, for the end of a run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prlhf.metrics.reading import (
    broken,
    figure,
    groups_by_size,
    interval,
    method_label,
    method_names,
    percent,
    worst_served,
)

MAX_COMPARISONS = 6
"""Of more comparisons only those of the subject and those with the baseline get a line."""

MAX_GROUPS = 3
"""More groups than these get no columns of their own; the whole table is in the report."""


def render(metrics: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """A table of methods and a line for each comparison, at most 100 columns wide.

    Both arguments are the content of the files in `reports/` of that name.
    """
    order = [method["name"] for method in evaluation["methods"]]
    groups = groups_by_size(metrics)
    columns = groups if 1 < len(groups) <= MAX_GROUPS else []
    heads = [_clip(group) for group in columns]
    blank = [""] * len(heads)
    worst = worst_served(metrics)[0].replace("_", " ")
    table = [
        ["", "accuracy", "", *blank, "words", *blank[1:], "text", "", ""],
        ["", "mean", worst, *heads, *(heads or ["mean"]), "nats/token", "broken", "cut off"],
        *[_row(metrics, name, columns) for name in method_names(metrics, order)],
    ]
    lines = _align(table)
    lines.append("(broken: empty or degenerate; cut off: at generate.max_new_tokens)")
    lines += [_gain(metrics, pair) for pair in _shown("accuracy_gain", metrics, evaluation)]
    lines += [_wins(metrics, pair) for pair in _shown("win_rate", metrics, evaluation)]
    return "\n".join(lines)


def _row(metrics: Mapping[str, Any], name: str, groups: Sequence[str]) -> list[str]:
    def cell(written: Callable[[float], str], value: float | None) -> str:
        return "-" if value is None else written(value)

    places: list[tuple[str, ...]] = [("groups", group) for group in groups]
    accuracies = [("macro",), (worst_served(metrics)[0],), *places]
    return [
        _clip(method_label(name), 17),
        *[cell(percent, figure(metrics, "accuracy", name, *at)) for at in accuracies],
        *[
            cell("{:.0f}".format, figure(metrics, "length", name, *at))
            for at in places or [("mean",)]
        ],
        cell("{:.2f}".format, figure(metrics, "fluency", name, "mean_nll")),
        cell(percent, broken(metrics, name)),
        cell(percent, figure(metrics, "fluency", name, "unfinished")),
    ]


def _clip(text: str, most: int = 11) -> str:
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines: the first column to the left, the others to the right."""
    # The first row holds the titles of groups of columns, which may reach over their neighbours.
    widths = [max(map(len, column)) for column in zip(*rows[1:], strict=True)]
    lines = []
    for first, *rest in rows[1:]:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    titles, start = "", 0
    for title, text, width in zip(rows[0], rows[1], widths, strict=True):
        if title:
            titles = titles.ljust(start + width - len(text)) + title
        start += width + 2
    return [titles, *lines]


def _shown(section: str, metrics: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[str]:
    """The comparisons `<method>_vs_<other>` of a section that get a line."""
    listed = sorted(metrics.get(section, {}))
    if len(listed) <= MAX_COMPARISONS:
        return listed
    subject, baseline = f"{evaluation['subject']}_vs_", f"_vs_{evaluation['baseline']}"
    return [pair for pair in listed if pair.startswith(subject) or pair.endswith(baseline)]


def _gain(metrics: Mapping[str, Any], pair: str) -> str:
    gain, (name, _, other) = metrics["accuracy_gain"][pair], pair.rpartition("_vs_")
    spreads = []
    for path, who in ((("same_users",), "these users"), ((), "other users")):
        if (ends := interval(metrics, "accuracy_gain", pair, *path)) is not None:
            spreads.append(f"{100 * ends[0]:+.0f} to {100 * ends[1]:+.0f} for {who}")
    spread = f" ({', '.join(spreads)})" if spreads else ""
    what = f"{method_label(name)} over {method_label(other)}"
    return f"{what}: {100 * gain:+.0f} points of accuracy{spread}"


def _wins(metrics: Mapping[str, Any], pair: str) -> str:
    tree, (name, _, other) = metrics["win_rate"][pair], pair.rpartition("_vs_")
    parts = [("", tree)]
    groups = [group for group in groups_by_size(metrics) if group in tree.get("groups", {})]
    if 1 < len(groups) <= MAX_GROUPS:
        parts += [(f"{_clip(group)} ", tree["groups"][group]) for group in groups]
    texts = []
    for label, part in parts:
        value, tie = figure(part, "win_rate"), figure(part, "tie")
        ties = f" (ties {percent(tie)})" if tie else ""
        if value is not None:
            texts.append(f"{label}{percent(value)}{ties}")
        elif tie:
            texts.append(f"{label}all tied")
    return f"{method_label(name)} against {method_label(other)}, wins: {', '.join(texts)}"

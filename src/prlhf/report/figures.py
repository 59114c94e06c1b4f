"""The tables of the report: figures of metrics.json in print, with their intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from prlhf.metrics.reading import (
    figure,
    groups_by_size,
    interval,
    look_up,
    method_label,
    number,
    number_range,
    percent,
    percent_range,
    points,
    signed_points,
)
from prlhf.report import plots

MAX_TABLE_GROUPS = 8
GAIN_COLUMNS = ("one for all", "knowing users", "gain")


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        header: Column heads; the first is over the row heads.
        rows: Row head, its CSS color (may be empty), and its cells: each a figure in print and its
            interval, empty if there is none.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[tuple[str, str]]]]


@dataclass(frozen=True)
class Format:
    """How a figure and its interval are printed."""

    figure: Callable[[float], str]
    interval: Callable[[tuple[float, float]], str]


SHARE = Format(percent, percent_range)
POINTS = Format(signed_points, lambda ends: " to ".join(map(signed_points, ends)))
NUMBER = Format(number, number_range)
WHOLE = Format(partial(number, digits=0), partial(number_range, digits=0))


def _table(
    metrics: Mapping[str, Any],
    names: Sequence[str],
    caption: str,
    rows: Sequence[tuple[str, str, tuple[str, ...]]],
    columns: Mapping[str, tuple[str, ...]],
    fmt: Format = SHARE,
    corner: str = "Method",
) -> Table | None:
    """Figures of metrics.json, each at its row's path and its column's; None without rows.

    A row has a head, the method that gives its colour, and its path. `corner` heads the row heads.
    """
    body = [
        (
            head,
            plots.method_color(name, names) if name in names else "",
            [_cell(metrics, (*at, *path), fmt) for path in columns.values()],
        )
        for head, name, at in rows
    ]
    return Table(caption, [corner, *columns], body) if rows else None


def _cell(metrics: Mapping[str, Any], path: tuple[str, ...], fmt: Format) -> tuple[str, str]:
    value, ends = figure(metrics, *path), interval(metrics, *path)
    if value is None:
        return "\N{EN DASH}", ""
    return fmt.figure(value), "" if ends is None else fmt.interval(ends)


def _by_group(metrics: Mapping[str, Any], *path: str) -> dict[str, tuple[str, ...]]:
    groups = groups_by_size(metrics)[:MAX_TABLE_GROUPS]
    return {f"“{group}”": ("groups", group, *path) for group in groups}


def accuracy_table(metrics: Mapping[str, Any], names: Sequence[str]) -> Table | None:
    """Accuracies of the methods, and of reward models below them."""
    rows = [
        (method_label(name), name, ("accuracy", name))
        for name in names
        if look_up(metrics, "accuracy", name)
    ]
    if not rows:
        return None
    # Reward models stand below the methods: they only choose between answers.
    rows += [
        (f"Reward model of {method_label(name)}", name, ("reward_models", name))
        for name in metrics.get("reward_models", {})
    ]
    columns = {
        "All users": ("macro",),
        "Worst tenth": ("worst_tenth",),
        "Worst user": ("worst_user",),
        **_by_group(metrics),
        "As generic user": ("generic",),
        "Held-out users": ("unseen",),
    }
    for head, path in list(columns.items()):
        if all(figure(metrics, *at, *path) is None for _, _, at in rows):
            del columns[head]
    caption = "Preference accuracy on held-out prompts, the mean over users"
    return _table(metrics, names, caption, rows, columns)


def generic_gain_table(
    metrics: Mapping[str, Any], names: Sequence[str], baseline: str
) -> Table | None:
    """What personalising costs users that a method does not know."""
    rows = [
        (method_label(name), name, ("generic_gain", f"{name}_vs_{baseline}"))
        for name in names
        if look_up(metrics, "generic_gain", f"{name}_vs_{baseline}")
    ]
    than = method_label(baseline)
    caption = f"Accuracy for users that are not known, less that of {than}, points"
    columns = {"Held-out users": ("unseen",), "Known users, as generic user": ("seen",)}
    return _table(metrics, names, caption, rows, columns, POINTS)


def win_rates_table(
    metrics: Mapping[str, Any], names: Sequence[str], pairs: Sequence[str]
) -> Table | None:
    """Win rates of all comparisons, a line each."""
    rows = []
    for pair in pairs:
        name, _, other = pair.rpartition("_vs_")
        head = f"{method_label(name)} against {method_label(other)}"
        rows.append((head, name, ("win_rate", pair)))
    columns = {
        "All seen users": ("win_rate",),
        **_by_group(metrics, "win_rate"),
        "Finished answers": ("finished", "win_rate"),
        "Held-out users": ("unseen", "win_rate"),
        "Ties": ("tie",),
        "Mean of users": ("macro",),
        "Worst user": ("worst_user",),
    }
    caption = "Win rates: wins among decided comparisons; user by user, ties counted half"
    return _table(metrics, names, caption, rows, columns, corner="")


def fluency_table(
    metrics: Mapping[str, Any], names: Sequence[str], personalized: Sequence[str]
) -> Table | None:
    """How long and how good the answers are, to all users, each group and unknown users."""
    columns = {
        "Nats per token": ("mean_nll", NUMBER),
        "Repeated 3-grams": ("repetition", SHARE),
        "Empty": ("empty", SHARE),
        "Degenerate": ("degenerate", SHARE),
        "Cut off": ("unfinished", SHARE),
    }
    rows = []
    for name in names:
        places: list[tuple[str, tuple[str, ...]]] = [("", ())]
        if name in personalized:
            known = look_up(metrics, "fluency", name, "groups") or {}
            groups = [group for group in groups_by_size(metrics) if group in known]
            places += [(f", “{group}”", ("groups", group)) for group in groups[:MAX_TABLE_GROUPS]]
            places.append((", generic user", ("generic",)))
        for who, place in places:
            at = ("fluency", name, *place)
            if look_up(metrics, *at) is None:
                continue
            cells = [_cell(metrics, (*at, key), fmt) for key, fmt in columns.values()]
            words = _cell(metrics, ("length", name, *(place or ("mean",))), WHOLE)
            color = plots.method_color(name, names)
            rows.append((method_label(name) + who, color, [words, *cells]))
    header = ["Answers of", "Words", *columns]
    return Table("Quality of the generated answers", header, rows) if rows else None


def pretraining_gain_table(pretrain: Mapping[str, Any] | None) -> Table | None:
    """What the reward model gains by knowing users, and what where they are shuffled."""
    gain = look_up(pretrain or {}, "gain")
    if gain is None or look_up(gain, "log_loss", "difference") is None:
        return None
    nats = partial(number, digits=3)
    measures: dict[str, tuple[Callable[[float], str], ...]] = {
        "log_loss": (nats, nats, nats),
        "accuracy": (percent, signed_points, points),
    }
    rows = []
    places: dict[str, tuple[str, ...]] = {"These users": (), "Users shuffled": ("shuffled",)}
    for head, place in places.items():
        cells = []
        for measure, (level, signed, size) in measures.items():
            found = look_up(gain, *place, measure) or {}
            cells += [(_known(level, found.get(key)), "") for key in ("shared", "personal")]
            error = _known(size, found.get("se"))
            cells.append((_known(signed, found.get("difference")), f"\N{PLUS-MINUS SIGN}{error}"))
        rows.append((head, "", cells))
    columns = [f"{what}, {who}" for what in ("Nats", "Accuracy") for who in GAIN_COLUMNS]
    caption = "Cross-validated on training choices: one model for all, and one that knows users"
    return Table(caption, ["", *columns], rows)


def _known(written: Callable[[float], str], value: float | None) -> str:
    return "\N{EN DASH}" if value is None else written(value)

"""`reports/report.html`: one file, for managers to read and engineers to check.

Everything in it comes from the tables and metrics of earlier stages, and equal inputs give equal
bytes. Prompts, answers and user names are the words of others: the template escapes all of them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from prlhf.data import BASE_METHOD, PROMPTED_METHOD
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
    signed_points,
)
from prlhf.report import headline, plots

MAX_TABLE_GROUPS = 8
MAX_ASSIGNED = 40
"""Users named in the table of clusters; more are only counted."""


@dataclass(frozen=True)
class Inputs:
    """What a report is made from.

    Attributes:
        metrics, evaluation, validation, pretrain: reports/<name>.json; of the last two, None if
            there is none.
        users: reports/plots/per_user_accuracy.csv.
        lengths, embeddings: reports/plots/<name>.csv.
        curves: reports/curves/<method>.csv by method.
        params: The parameters of the run.
        lock: Stages of dvc.lock, empty if there is none.
        version: Of this package.
    """

    metrics: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    users: pd.DataFrame
    lengths: pd.DataFrame
    embeddings: pd.DataFrame
    curves: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    validation: Mapping[str, Any] | None = None
    pretrain: Mapping[str, Any] | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    lock: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""


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


def render(inputs: Inputs) -> str:
    """The report as HTML."""
    environment = Environment(
        loader=PackageLoader("prlhf.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": percent, "label": method_label}
    return environment.get_template("report.html.j2").render(_context(inputs))


def _context(inputs: Inputs) -> dict[str, Any]:
    metrics, evaluation = inputs.metrics, inputs.evaluation
    methods, subject, baseline = (evaluation[key] for key in ("methods", "subject", "baseline"))
    names = [method["name"] for method in methods]
    personalized = [method["name"] for method in methods if method["personalised"]]
    groups = groups_by_size(metrics)
    points = dict(list(inputs.embeddings.groupby("method")))
    maps = {
        name: plots.draw_user_map(points[name], name, groups)
        for name in personalized
        if name in points
    }
    colors = {name: plots.method_color(name, names) for name in names}

    def order(pair: str) -> tuple[bool, int, str]:
        name, _, other = pair.rpartition("_vs_")
        return other != baseline, names.index(name), pair

    pairs = sorted(metrics.get("win_rate", {}), key=order)
    # All comparisons are in the table; only those of the subject are drawn as well.
    drawn = [pair for pair in pairs if pair.rpartition("_vs_")[0] == subject] or pairs[:2]
    return {
        "answer": headline.write(metrics, personalized, subject, baseline),
        "dataset": evaluation.get("dataset", {}),
        "model": look_up(inputs.params, "model", "name") or "",
        "methods": [
            {
                "name": name,
                "color": colors[name],
                "what": _describe(inputs.params, name, name in personalized),
            }
            for name in names
        ],
        "colors": colors,
        "metrics": metrics,
        "level": percent(figure(metrics, "interval", "level") or 0.95),
        "judge": evaluation["judge"],
        "notes": evaluation["notes"],
        "accuracy": _accuracy_table(metrics, names),
        "reward_models": list(metrics.get("reward_models", {})),
        "generic_gain": _generic_table(metrics, names, baseline),
        "fluency": _fluency_table(metrics, names, personalized),
        "user_accuracy": plots.draw_accuracy(inputs.users, names),
        "wins": [svg for pair in drawn if (svg := plots.draw_wins(metrics, pair, names))],
        "win_rates": _win_table(metrics, names, pairs),
        "lengths": plots.draw_lengths(inputs.lengths, names),
        "maps": [(name, svg) for name, svg in maps.items() if svg],
        "curves": plots.draw_training(inputs.curves, names),
        "samples": evaluation["samples"]["prompts"],
        "validation": inputs.validation,
        "expectations": _expectations(inputs.validation),
        "pretrain": inputs.pretrain,
        "clusters": _clusters(inputs.pretrain),
        "max_assigned": MAX_ASSIGNED,
        "params": list(_flatten(inputs.params)),
        "hashes": _hashes(inputs.lock),
        "version": inputs.version,
    }


def _describe(params: Mapping[str, Any], name: str, personalized: bool) -> str:
    if name == BASE_METHOD:
        return "the model before any tuning; the same answer for everyone"
    if name == PROMPTED_METHOD:
        return "the model before any tuning, told what the user says of themselves"
    method = look_up(params, "methods", name) or {}
    kind = method.get("kind")
    told = "; told what the user says, too" if method.get("text") else ""
    if kind == "cluster":
        return f"each user is a mixture of a few learned user types{told}"
    if kind == "group":
        return f"a model for each known group of users{told}"
    if kind == "uniform" and told:
        return "one model for everyone, tuned on all choices; told what the user says"
    if personalized:
        return f"each user has an embedding of their own{told}"
    return "one model for everyone, tuned on all users' choices together"


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


def _accuracy_table(metrics: Mapping[str, Any], names: Sequence[str]) -> Table | None:
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


def _generic_table(metrics: Mapping[str, Any], names: Sequence[str], baseline: str) -> Table | None:
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


def _win_table(
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
        "Held-out users": ("unseen", "win_rate"),
        "Ties": ("tie",),
        "Mean of users": ("macro",),
        "Worst user": ("worst_user",),
    }
    caption = "Win rates: wins among decided comparisons; user by user, ties counted half"
    return _table(metrics, names, caption, rows, columns, corner="")


def _fluency_table(
    metrics: Mapping[str, Any], names: Sequence[str], personalized: Sequence[str]
) -> Table | None:
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


def _expectations(validation: Mapping[str, Any] | None) -> list[dict[str, str]]:
    suites = look_up(validation or {}, "expectations") or {}
    return [
        {
            "suite": suite.replace("_", " "),
            "name": name.replace("_", " "),
            "expectation": str(check.get("expectation", "")).removeprefix("expect_"),
            "arguments": ", ".join(
                f"{k}={v}" for k, v in sorted(check.get("arguments", {}).items())
            ),
            "consequence": str(check.get("on_failure", "")),
            "unexpected": str(check.get("unexpected", "")),
            "success": "met" if check.get("success") else "not met",
        }
        for suite, checks in suites.items()
        for name, check in sorted(checks.items())
    ]


def _clusters(pretrain: Mapping[str, Any] | None) -> list[tuple[str, list[str]]]:
    """Users by the cluster that pretraining put them in."""
    members: dict[str, list[str]] = {}
    for user, cluster in sorted((look_up(pretrain or {}, "assignments") or {}).items()):
        members.setdefault(str(cluster), []).append(user)
    return sorted(members.items())


def _flatten(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    """`(dotted key, value)` of every leaf, in the file's order and as the file writes it."""
    if isinstance(tree, Mapping) and tree:
        return [
            pair
            for key, value in tree.items()
            for pair in _flatten(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(tree, list):
        return [(prefix, ", ".join(map(str, tree)))]
    in_json = tree is None or isinstance(tree, bool)
    return [(prefix, json.dumps(tree) if in_json else str(tree))]


def _hashes(lock: Mapping[str, Any]) -> list[dict[str, str]]:
    """Outputs of the stages before the report, with the hashes that DVC recorded."""
    rows = []
    outs = [(stage, out) for stage, entry in lock.items() for out in entry.get("outs", [])]
    for stage, out in outs:
        known = next((key for key in ("md5", "etag", "checksum") if key in out), None)
        if stage != "report" and known is not None and out["path"] != "reports/data_docs":
            size = _bytes(int(out["size"])) if out.get("size") is not None else ""
            cells = {"path": out["path"], "hash": str(out[known]), "size": size}
            rows.append({"stage": stage, **cells})
    return rows


def _bytes(size: int) -> str:
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"

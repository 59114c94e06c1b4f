"""`reports/report.html`: one file, for managers to read and engineers to check.

Everything in it comes from the tables and metrics of earlier stages, and equal inputs give equal
bytes. Prompts, answers and user names are the words of others: the template escapes all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from prlhf.evaluation import curves, headline, plots
from prlhf.evaluation.answers import BASE, BASELINE, PROMPTED
from prlhf.evaluation.labels import (
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

if TYPE_CHECKING:
    import pandas as pd

MAX_TABLE_GROUPS = 8
MAX_ASSIGNED = 40
"""Users named in the table of clusters; more are only counted."""


@dataclass(frozen=True)
class Inputs:
    """What a report is made from.

    Attributes:
        metrics: reports/metrics.json.
        evaluation: reports/evaluation.json.
        users: reports/plots/per_user_accuracy.csv.
        lengths: reports/plots/lengths.csv.
        embeddings: reports/plots/embeddings.csv.
        curves: reports/curves/<method>.csv by method.
        validation: reports/validation.json, None if there is none.
        pretrain: reports/pretrain.json, None if there is none.
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
class Cell:
    """A figure in a table: its value in print and its interval, empty where there is none."""

    value: str
    spread: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        caption: What it shows.
        header: Column heads; the first is over the row heads.
        rows: Row head, its CSS colour (may be empty), and its cells.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[Cell]]]


def render(inputs: Inputs) -> str:
    """The report as HTML."""
    environment = Environment(
        loader=PackageLoader("prlhf.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = percent
    environment.filters["label"] = method_label
    return environment.get_template("report.html.j2").render(_context(inputs))


def _context(inputs: Inputs) -> dict[str, Any]:
    metrics = inputs.metrics
    methods = inputs.evaluation["methods"]
    names = [method["name"] for method in methods]
    personalised = [method["name"] for method in methods if method["personalised"]]
    groups = groups_by_size(metrics)
    shown = [name for name in personalised if name in set(inputs.embeddings["method"])]
    maps = [
        (name, plots.user_map(part, name, groups))
        for name in shown
        if len(part := inputs.embeddings[inputs.embeddings["method"] == name])
    ]
    main = headline.main_method(metrics, personalised)
    pairs = sorted(
        metrics.get("win_rate", {}),
        key=lambda pair: (
            not pair.endswith(f"_vs_{BASELINE}"),
            names.index(pair.rpartition("_vs_")[0]),
            pair,
        ),
    )
    # One comparison to a drawing; where methods are many, drawings of the main one and a table.
    drawn = [pair for pair in pairs if pair.rpartition("_vs_")[0] == main] or pairs[:2]
    return {
        "answer": headline.write(metrics, personalised, BASELINE),
        "dataset": inputs.evaluation.get("dataset", {}),
        "model": look_up(inputs.params, "model", "name") or "",
        "methods": [
            {
                "name": name,
                "colour": plots.method_colour(name, names),
                "what": _describe(inputs.params, name, name in personalised),
            }
            for name in names
        ],
        "colours": {name: plots.method_colour(name, names) for name in names},
        "metrics": metrics,
        "level": percent(figure(metrics, "interval", "level") or 0.95),
        "judge": inputs.evaluation["judge"],
        "notes": inputs.evaluation["notes"],
        "accuracy": _accuracy_table(metrics, names, groups),
        "reward_models": list(metrics.get("reward_models", {})),
        "generic_gain": _generic_table(metrics, names),
        "fluency": _fluency_table(metrics, names, personalised),
        "user_accuracy": plots.user_accuracy(inputs.users, names),
        "wins": [svg for pair in drawn if (svg := plots.wins(metrics, pair, names))],
        "win_rates": _win_table(metrics, pairs, names, groups) if pairs else None,
        "lengths": plots.lengths(inputs.lengths, names),
        "maps": [(name, svg) for name, svg in maps if svg],
        "curves": curves.training(inputs.curves, names),
        "samples": inputs.evaluation["samples"]["prompts"],
        "validation": inputs.validation,
        "expectations": _expectations(inputs.validation),
        "pretrain": inputs.pretrain,
        "clusters": _clusters(inputs.pretrain),
        "max_assigned": MAX_ASSIGNED,
        "params": list(_flatten(inputs.params)),
        "hashes": _hashes(inputs.lock),
        "version": inputs.version,
    }


def _describe(params: Mapping[str, Any], name: str, personalised: bool) -> str:
    if name == BASE:
        return "the model before any tuning; the same answer for everyone"
    if name == PROMPTED:
        return "the model before any tuning, told what the user says of themselves"
    kind = look_up(params, "methods", name, "kind")
    told = "; told what the user says, too" if look_up(params, "methods", name, "text") else ""
    if kind == "cluster":
        return f"each user is a mixture of a few learned user types{told}"
    if kind == "group":
        return f"a model for each known group of users{told}"
    if kind == "uniform" and told:
        return "one model for everyone, tuned on all choices; told what the user says"
    if personalised:
        return f"each user has an embedding of their own{told}"
    return "one model for everyone, tuned on all users' choices together"


def _accuracy_table(
    metrics: Mapping[str, Any], names: Sequence[str], groups: Sequence[str]
) -> Table | None:
    scored = [name for name in names if look_up(metrics, "accuracy", name)]
    if not scored:
        return None
    # Reward models stand below the methods: they only choose between answers.
    scores = [("accuracy", name, method_label(name)) for name in scored]
    scores += [
        ("reward_models", name, f"Reward model of {method_label(name)}")
        for name in metrics.get("reward_models", {})
    ]
    columns: list[tuple[str, tuple[str, ...]]] = [
        ("All users", ("macro",)),
        ("Worst user", ("worst_user",)),
        *[(f"“{group}”", ("groups", group)) for group in groups[:MAX_TABLE_GROUPS]],
        ("As generic user", ("generic",)),
        ("Held-out users", ("unseen",)),
    ]
    columns = [
        (head, path)
        for head, path in columns
        if any(figure(metrics, section, name, *path) is not None for section, name, _ in scores)
    ]
    rows = [
        (
            head,
            plots.method_colour(name, names) if name in names else "",
            [_share(metrics, section, name, *path) for _, path in columns],
        )
        for section, name, head in scores
    ]
    return Table(
        "Preference accuracy on held-out prompts, the mean over users",
        ["Method", *[head for head, _ in columns]],
        rows,
    )


def _generic_table(metrics: Mapping[str, Any], names: Sequence[str]) -> Table | None:
    """What personalising costs users that a method does not know."""
    rows = []
    for name in names:
        at = ("generic_gain", f"{name}_vs_{BASELINE}")
        if look_up(metrics, *at):
            cells = [_points(metrics, *at, place) for place in headline.STRANGERS]
            rows.append((method_label(name), plots.method_colour(name, names), cells))
    than = method_label(BASELINE)
    caption = f"Accuracy for users that are not known, less that of {than}, points"
    header = ["Method", "Held-out users", "Known users, as generic user"]
    return Table(caption, header, rows) if rows else None


def _win_table(
    metrics: Mapping[str, Any], pairs: Sequence[str], names: Sequence[str], groups: Sequence[str]
) -> Table:
    """Win rates of all comparisons, a line each."""
    columns: list[tuple[str, tuple[str, ...]]] = [
        ("All seen users", ()),
        *[(f"“{group}”", ("groups", group)) for group in groups[:MAX_TABLE_GROUPS]],
        ("Held-out users", ("unseen",)),
    ]
    rows = []
    for pair in pairs:
        name, _, other = pair.rpartition("_vs_")
        cells = [_share(metrics, "win_rate", pair, *path, "win_rate") for _, path in columns]
        cells += [_share(metrics, "win_rate", pair, key) for key in ("tie", "macro", "worst_user")]
        head = f"{method_label(name)} against {method_label(other)}"
        rows.append((head, plots.method_colour(name, names), cells))
    heads = [head for head, _ in columns]
    caption = "Win rates: wins among decided comparisons; user by user, ties counted half"
    return Table(caption, ["", *heads, "Ties", "Mean of users", "Worst user"], rows)


def _fluency_table(
    metrics: Mapping[str, Any], names: Sequence[str], personalised: Sequence[str]
) -> Table | None:
    rows = []
    for name in names:
        places: list[tuple[str, tuple[str, ...]]] = [(method_label(name), ())]
        if name in personalised:
            groups = [g for g in groups_by_size(metrics) if look_up(
                metrics, "fluency", name, "groups", g)]  # fmt: skip
            places += [
                (f"{method_label(name)}, “{group}”", ("groups", group))
                for group in groups[:MAX_TABLE_GROUPS]
            ]
            places.append((f"{method_label(name)}, generic user", ("generic",)))
        for head, place in places:
            at = ("fluency", name, *place)
            if look_up(metrics, *at) is None:
                continue
            words = ("length", name, *(place or ("mean",)))
            rows.append(
                (
                    head,
                    plots.method_colour(name, names),
                    [
                        _plain(metrics, 0, *words),
                        _plain(metrics, 2, *at, "mean_nll"),
                        _share(metrics, *at, "repetition"),
                        _share(metrics, *at, "empty"),
                        _share(metrics, *at, "degenerate"),
                        _share(metrics, *at, "unfinished"),
                    ],
                )
            )
    if not rows:
        return None
    header = ["Answers of", "Words", "Nats per token", "Repeated 3-grams", "Empty", "Degenerate"]
    return Table("Quality of the generated answers", [*header, "Cut off"], rows)


def _share(metrics: Mapping[str, Any], *path: str) -> Cell:
    value, ends = figure(metrics, *path), interval(metrics, *path)
    if value is None:
        return Cell("\N{EN DASH}")
    return Cell(percent(value), "" if ends is None else percent_range(ends))


def _points(metrics: Mapping[str, Any], *path: str) -> Cell:
    value, ends = figure(metrics, *path), interval(metrics, *path)
    if value is None:
        return Cell("\N{EN DASH}")
    spread = "" if ends is None else " to ".join(map(signed_points, ends))
    return Cell(signed_points(value), spread)


def _plain(metrics: Mapping[str, Any], digits: int, *path: str) -> Cell:
    value, ends = figure(metrics, *path), interval(metrics, *path)
    if value is None:
        return Cell("\N{EN DASH}")
    return Cell(number(value, digits), "" if ends is None else number_range(ends, digits))


def _expectations(validation: Mapping[str, Any] | None) -> list[dict[str, str]]:
    rows = []
    suites = look_up(validation or {}, "expectations") or {}
    for suite, checks in suites.items():
        for name, check in sorted(checks.items()):
            arguments = check.get("arguments", {})
            rows.append(
                {
                    "suite": suite.replace("_", " "),
                    "name": name.replace("_", " "),
                    "expectation": str(check.get("expectation", "")).removeprefix("expect_"),
                    "arguments": ", ".join(f"{k}={v}" for k, v in sorted(arguments.items())),
                    "consequence": str(check.get("on_failure", "")),
                    "unexpected": str(check.get("unexpected", "")),
                    "success": "met" if check.get("success") else "not met",
                }
            )
    return rows


def _clusters(pretrain: Mapping[str, Any] | None) -> list[tuple[str, list[str]]]:
    """Users by the cluster that pretraining put them in."""
    members: dict[str, list[str]] = {}
    for user, cluster in sorted((look_up(pretrain or {}, "assignments") or {}).items()):
        members.setdefault(str(cluster), []).append(user)
    return sorted(members.items())


def _flatten(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    """`(dotted key, value)` of every leaf, in the file's order."""
    if isinstance(tree, Mapping) and tree:
        return [
            pair
            for key, value in tree.items()
            for pair in _flatten(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(tree, list):
        return [(prefix, ", ".join(map(str, tree)))]
    # As it stands in the file.
    return (
        [(prefix, {None: "null", True: "true", False: "false"}[tree])]
        if (tree is None or isinstance(tree, bool))
        else [(prefix, str(tree))]
    )


def _hashes(lock: Mapping[str, Any]) -> list[dict[str, str]]:
    """Outputs of the stages before the report, with the hashes that DVC recorded."""
    rows = []
    for stage, entry in lock.items():
        if stage == "report":
            continue
        for out in entry.get("outs", []):
            known = next((key for key in ("md5", "etag", "checksum") if key in out), None)
            if known is None or out["path"] == "reports/data_docs":
                continue
            size = out.get("size")
            rows.append(
                {
                    "stage": stage,
                    "path": out["path"],
                    "hash": str(out[known]),
                    "size": "" if size is None else _bytes(int(size)),
                }
            )
    return rows


def _bytes(size: int) -> str:
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"

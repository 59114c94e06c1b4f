"""`reports/report.html`: one file, for managers to read and engineers to check.

Everything in it comes from the tables and metrics of earlier stages, and equal inputs give equal
bytes. Prompts, answers and user names are the words of others: the template escapes all of them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from prlhf.data import BASE_METHOD, PROMPTED_METHOD
from prlhf.metrics.reading import (
    figure,
    groups_by_size,
    in_words,
    look_up,
    method_label,
    percent,
    points,
)
from prlhf.report import cautions, figures, headline, plots

MAX_ASSIGNED = 40
"""Users named in the table of clusters; more are only counted."""


@dataclass(frozen=True)
class Inputs:
    """What a report is made from.

    Attributes:
        metrics, evaluation, validation, reference, pretrain: reports/<name>.json; of the last
            three, None if there is none.
        users: reports/plots/per_user_accuracy.csv.
        lengths, embeddings: reports/plots/<name>.csv.
        curves, accounts: reports/curves/<method>.csv and .json by method.
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
    accounts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    validation: Mapping[str, Any] | None = None
    reference: Mapping[str, Any] | None = None
    pretrain: Mapping[str, Any] | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    lock: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""


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
    located = dict(list(inputs.embeddings.groupby("method")))
    maps = {
        name: plots.draw_user_map(located[name], name, groups)
        for name in personalized
        if name in located
    }
    colors = {name: plots.method_color(name, names) for name in names}

    def order(pair: str) -> tuple[bool, int, str]:
        name, _, other = pair.rpartition("_vs_")
        return other != baseline, names.index(name), pair

    pairs = sorted(metrics.get("win_rate", {}), key=order)
    # All comparisons are in the table; only those of the subject are drawn as well.
    drawn = [pair for pair in pairs if pair.rpartition("_vs_")[0] == subject] or pairs[:2]
    return {
        "answer": headline.write(
            metrics,
            personalized,
            subject,
            baseline,
            margin=evaluation["margin"],
            fallback=_falls_back(inputs, subject),
            of_limits=_of_limits(inputs, names),
        ),
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
        "margin": points(evaluation["margin"]),
        "judge": evaluation["judge"],
        "notes": evaluation["notes"],
        "accuracy": figures.accuracy_table(metrics, names),
        "reward_models": list(metrics.get("reward_models", {})),
        "generic_gain": figures.generic_gain_table(metrics, names, baseline),
        "fluency": figures.fluency_table(metrics, names, personalized),
        "user_accuracy": plots.draw_accuracy(inputs.users, names),
        "wins": [svg for pair in drawn if (svg := plots.draw_wins(metrics, pair, names))],
        "win_rates": figures.win_rates_table(metrics, names, pairs),
        "lengths": plots.draw_lengths(inputs.lengths, names),
        "maps": [(name, svg) for name, svg in maps.items() if svg],
        "curves": plots.draw_training(inputs.curves, names),
        "trained": [
            _trained(name, inputs.accounts[name]) for name in names if name in inputs.accounts
        ],
        "samples": evaluation["samples"]["prompts"],
        "validation": inputs.validation,
        "expectations": _expectations(inputs.validation),
        "pretrain": inputs.pretrain,
        "gain": figures.pretraining_gain_table(inputs.pretrain),
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


def _of_limits(inputs: Inputs, names: Sequence[str]) -> list[str]:
    if inputs.reference is None:
        return []
    read = [look_up(inputs.params, "methods", name, "text") for name in names]
    return cautions.of_limits(inputs.reference, reads_texts=PROMPTED_METHOD in names or any(read))


def _falls_back(inputs: Inputs, subject: str) -> bool:
    """Whether the pretraining found nothing to gain, so that `subject` serves everybody alike."""
    kind = look_up(inputs.params, "methods", subject, "kind")
    closed = look_up(inputs.pretrain or {}, "gain", "personal") is False
    return closed and kind in ("individual", "cluster")


def _trained(name: str, account: Mapping[str, Any]) -> str:
    """What a training has seen, in a sentence."""
    pairs, users = account["pairs"], account["users"]
    done = [run["steps"] for run in account["runs"]]
    kept = in_words([str(run["kept_step"]) for run in account["runs"]])
    several = f" in {len(done)} runs" if len(done) > 1 else ""
    text = (
        f"{method_label(name)}: {sum(done)} steps{several}, weights of step {kept} kept; until "
        f"then {pairs['seen']:,} of {pairs['all']:,} training pairs were seen"
    )
    return text + (f", and {users['seen']:,} of {users['all']:,} users." if users["all"] else ".")


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

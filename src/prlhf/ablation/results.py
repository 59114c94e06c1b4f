"""From the files of an ablation's runs to its table."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import numpy as np

from prlhf.ablation.definition import Ablation, Run
from prlhf.ablation.runner import log_file
from prlhf.ablation.runs import Found, Project, show
from prlhf.ablation.statistics import crossed_mean
from prlhf.errors import UserError
from prlhf.evaluation.answers import BASELINE
from prlhf.evaluation.statistics import Bootstrap, Estimate, Floats

PER_USER = "reports/per_user.csv"
KEY_FIGURES = "reports/headline.json"
UNIFORM = "uniform"
RESUMED = ": resuming from step "
"""What training says that goes on from a checkpoint; its time is not that of the whole."""

PLAIN = ("worst_user", "nll", "broken", "words")
"""Figures of reports/headline.json that are averaged over seeds."""

ByUser = Mapping[str, float]


@dataclass(frozen=True)
class Result:
    """What one run came to.

    Attributes:
        found: The run.
        served: Seen user -> accuracy under their own embeddings.
        generic: Seen user -> accuracy when served as an unknown user.
        unseen: Held-out user -> accuracy.
        dpo: Seen user -> accuracy of the method `dpo` of the same run, if it has one.
        figures: Those of `PLAIN` that the run has.
        seconds: What its stage `train` took; None if it was not measured here.
    """

    found: Found
    served: ByUser
    generic: ByUser
    unseen: ByUser
    dpo: ByUser
    figures: Mapping[str, float]
    seconds: float | None


@dataclass(frozen=True)
class Row:
    """A setting's figures; None where there is none.

    Attributes:
        setting: Its name.
        changes: Dotted key -> value, of what it changes.
        seeds: The seeds of its runs.
        users: How many seen users they have.
        accuracy: Of seen users, mean over users and seeds.
        difference: In accuracy to the baseline, on the same users and seeds; None for itself.
        worst_user: Accuracy for the user served worst, mean over seeds.
        generic: Accuracy of seen users when served as unknown ones.
        cost: `generic` less the accuracy of one model for all users: of `dpo` in the same runs, or
            else of the setting with the uniform user model.
        unseen: Accuracy of users held out whole.
        nll, broken, words: Of the answers; see docs/experiments.md.
        seconds: What the stage `train` took, mean over seeds.
    """

    setting: str
    changes: Mapping[str, Any]
    seeds: Sequence[int]
    users: int
    accuracy: Estimate | None
    difference: Estimate | None
    worst_user: float | None
    generic: Estimate | None
    cost: Estimate | None
    unseen: Estimate | None
    nll: float | None
    broken: float | None
    words: float | None
    seconds: float | None


@dataclass(frozen=True)
class Table:
    """An ablation's figures.

    Attributes:
        ablation: What was compared.
        rows: A setting each, in the ablation's order; only those that have runs.
        results: What the rows were made of.
        bootstrap: What made the intervals.
        missing: Experiments that there are not.
    """

    ablation: Ablation
    rows: Sequence[Row]
    results: Sequence[Result]
    bootstrap: Bootstrap
    missing: Sequence[str] = field(default=())


def read_result(project: Project, found: Found, method: str) -> Result:
    """Read a run's files from the commit of its experiment.

    Raises:
        UserError: They do not hold the method's accuracy.
    """
    text = show(project, found.commit, PER_USER)
    rows = list(csv.DictReader(StringIO(text or "")))
    if not rows or f"accuracy_{method}" not in rows[0]:
        raise UserError(
            f"has no accuracy of {method} in {PER_USER}",
            where=f"experiment {found.run.experiment}",
            fix=f"`dvc exp remove {found.run.experiment}` makes the next call run it anew",
        )
    seen = [row for row in rows if row["seen"] == "True"]
    unseen = [row for row in rows if row["seen"] != "True"]
    figures = json.loads(show(project, found.commit, KEY_FIGURES) or "{}").get(method, {})
    return Result(
        found=found,
        served=_column(seen, f"accuracy_{method}"),
        generic=_column(seen, f"accuracy_{method}_generic"),
        unseen=_column(unseen, f"accuracy_{method}"),
        dpo=_column(seen, f"accuracy_{BASELINE}"),
        figures={key: float(figures[key]) for key in PLAIN if key in figures},
        seconds=_seconds(project, found.run, method),
    )


def tabulate(
    ablation: Ablation,
    runs: Sequence[Run],
    results: Sequence[Result],
    bootstrap: Bootstrap,
) -> Table:
    """The figures of each setting, and its difference to the baseline.

    Args:
        ablation: What is compared.
        runs: All of its runs.
        results: Of those that are there.
        bootstrap: Makes the intervals.
    """
    by_setting: dict[str, dict[int, Result]] = {each.name: {} for each in ablation.settings}
    for result in results:
        by_setting[result.found.run.setting][result.found.run.seed] = result
    uniform = next(
        (run.setting for run in runs if run.params.methods[ablation.method].kind == UNIFORM), None
    )
    rows = []
    for setting in ablation.settings:
        own = by_setting[setting.name]
        if not own:
            continue
        baseline = by_setting[ablation.baseline]
        differences = _table(
            {
                seed: _less(own[seed].served, baseline[seed].served)
                for seed in own
                if seed in baseline
            }
        )
        rows.append(
            Row(
                setting=setting.name,
                changes=setting.own,
                seeds=sorted(own),
                users=len({user for result in own.values() for user in result.served}),
                accuracy=crossed_mean(_table(_each(own, "served")), bootstrap),
                difference=None
                if setting.name == ablation.baseline
                else crossed_mean(differences, bootstrap),
                generic=crossed_mean(_table(_each(own, "generic")), bootstrap),
                cost=crossed_mean(
                    _table(_costs(own, by_setting, setting.name, uniform)), bootstrap
                ),
                unseen=crossed_mean(_table(_each(own, "unseen")), bootstrap),
                seconds=_mean([result.seconds for result in own.values()]),
                **{
                    key: _mean([result.figures.get(key) for result in own.values()])
                    for key in PLAIN
                },
            )
        )
    there = {result.found.run.experiment for result in results}
    missing = [run.experiment for run in runs if run.experiment not in there]
    return Table(ablation, rows, results, bootstrap, missing)


def _column(rows: Sequence[Mapping[str, str]], name: str) -> dict[str, float]:
    return {row["user_id"]: float(row[name]) for row in rows if row.get(name)}


def _each(results: Mapping[int, Result], name: str) -> dict[int, ByUser]:
    return {seed: getattr(result, name) for seed, result in results.items()}


def _less(one: ByUser, other: ByUser) -> dict[str, float]:
    """The difference for every user that is in both."""
    return {user: one[user] - other[user] for user in one if user in other}


def _costs(
    own: Mapping[int, Result],
    by_setting: Mapping[str, Mapping[int, Result]],
    name: str,
    uniform: str | None,
) -> dict[int, dict[str, float]]:
    """By seed, what seen users lose as unknown ones against one model for all users."""
    found = {}
    for seed, result in own.items():
        other = result.dpo
        if not other and uniform not in (None, name) and seed in by_setting[str(uniform)]:
            other = by_setting[str(uniform)][seed].served
        found[seed] = _less(result.generic, other)
    return found


def _table(by_seed: Mapping[int, ByUser]) -> Floats:
    """[users, seeds], NaN where a seed has no such user."""
    users = sorted({user for values in by_seed.values() for user in values})
    columns = [[values.get(user, np.nan) for user in users] for values in by_seed.values()]
    return np.array(columns, dtype=np.float64).reshape(len(by_seed), len(users)).T


def _mean(values: Sequence[float | None]) -> float | None:
    """None unless all are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _seconds(project: Project, run: Run, method: str) -> float | None:
    """What a run's log says, if it was trained here, at one go and not out of the cache."""
    log = log_file(project, run.experiment)
    text = log.read_text(encoding="utf-8") if log.is_file() else ""
    found = re.findall(rf"^train@{re.escape(method)}: done in ([\d.]+) s$", text, re.M)
    return float(found[0]) if len(found) == 1 and RESUMED not in text else None

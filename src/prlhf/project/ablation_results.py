"""From the files of an ablation's runs to its table."""

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import Any, NamedTuple

from prlhf.infra.errors import UserError
from prlhf.infra.tables import original
from prlhf.metrics.intervals import Estimate, Intervals
from prlhf.project.ablation_runs import FoundRun, Project, log_file, show
from prlhf.project.ablations import Ablation, AblationRun

PER_USER = "reports/per_user.csv"
KEY_FIGURES = "reports/headline.json"
UNIFORM = "uniform"
RESUMED = ": resuming from step "  # said by a training whose time is not that of the whole
PLAIN = ("worst_user", "nll", "broken", "words")  # of KEY_FIGURES; averaged over seeds

ByUser = Mapping[str, float]


class Result(NamedTuple):
    """What one run came to: accuracies by user, other figures, and its time.

    Attributes:
        served, generic: Of seen users, under their own embeddings and when served as unknown.
        validation: Of seen users under their own embeddings, on pairs of validation.
        sizes: How many pairs of test each user has, and of validation (`validation_sizes`).
        unseen: Of held-out users.
        baseline: Of seen users, by the run's `evaluate.baseline`; empty if that was not trained.
        figures: Those of `PLAIN` that the run has.
        seconds: What its stage `train` took; None if it was not measured here.
    """

    found: FoundRun
    served: ByUser
    generic: ByUser
    validation: ByUser
    sizes: ByUser
    validation_sizes: ByUser
    unseen: ByUser
    baseline: ByUser
    figures: Mapping[str, float]
    seconds: float | None


class AblationRow(NamedTuple):
    """A setting's figures, means over its seeds (and seen users); None where there is none.

    All but `validation` are of the ablation's reported seeds.

    Attributes:
        seeds: The reported ones that it has.
        validation: Accuracy on the pairs of validation, under the seeds to choose by.
        difference: In accuracy to the ablation's baseline, on the same users and seeds.
        generic: Accuracy of seen users when served as unknown ones.
        cost: `generic` less the accuracy of one model for all users: of `evaluate.baseline` in the
            same runs, or else of the setting with the uniform user model.
        unseen: Accuracy of users held out whole.
        nll, broken, words: Of the answers; see docs/experiments.md.
        seconds: What the stage `train` took.
    """

    setting: str
    changes: Mapping[str, Any]
    seeds: Sequence[int]
    users: int
    validation: Estimate | None
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


class AblationTable(NamedTuple):
    """An ablation's figures: a row for each setting that has runs, and the experiments missing."""

    ablation: Ablation
    rows: Sequence[AblationRow]
    results: Sequence[Result]
    intervals: Intervals
    missing: Sequence[str] = ()

    @property
    def best(self) -> str | None:
        """The setting that is best on the pairs of validation; None if it is not known of all."""
        known = {row.setting: row.validation.value for row in self.rows if row.validation}
        return max(known, key=lambda name: known[name]) if len(known) == len(self.rows) else None


def read_result(project: Project, found: FoundRun, method: str) -> Result:
    """Read a run's files from the commit of its experiment.

    Raises:
        UserError: They do not hold the method's accuracy.
    """
    run = found.run
    text = show(project, found.commit, PER_USER)
    rows = list(csv.DictReader(StringIO(text or "")))
    if not rows or f"accuracy_{method}" not in rows[0]:
        raise UserError(
            f"has no accuracy of {method} in {PER_USER}",
            where=f"experiment {run.experiment}",
            fix=f"`dvc exp remove {run.experiment}` makes the next call run it anew",
        )

    def column(name: str, seen: bool = True) -> dict[str, float]:
        chosen = [row for row in rows if (row["seen"] == "True") is seen]
        return {original(row["user_id"]): float(row[name]) for row in chosen if row.get(name)}

    figures = json.loads(show(project, found.commit, KEY_FIGURES) or "{}").get(method, {})
    return Result(
        found=found,
        served=column(f"accuracy_{method}"),
        generic=column(f"accuracy_{method}_generic"),
        validation=column(f"validation_{method}"),
        sizes=column("pairs") | column("pairs", seen=False),
        validation_sizes=column("pairs_validation"),
        unseen=column(f"accuracy_{method}", seen=False),
        baseline=column(f"accuracy_{run.params.evaluate.baseline}"),
        figures={key: float(figures[key]) for key in PLAIN if key in figures},
        seconds=_seconds(project, run, method),
    )


def tabulate(
    ablation: Ablation, runs: Sequence[AblationRun], results: Sequence[Result], intervals: Intervals
) -> AblationTable:
    """The figures of each setting, from all runs of an ablation and the results of some of them."""
    by_setting: dict[str, dict[int, Result]] = {each.name: {} for each in ablation.settings}
    for result in results:
        by_setting[result.found.run.setting][result.found.run.seed] = result
    uniform = next(
        (run.setting for run in runs if run.params.methods[ablation.method].kind == UNIFORM), None
    )
    baseline = by_setting[ablation.baseline]
    rows = []
    for setting in ablation.settings:
        every = by_setting[setting.name]
        if not every:
            continue
        chosen_by, own = (
            {seed: every[seed] for seed in seeds if seed in every}
            for seeds in (ablation.seeds, ablation.reported)
        )
        found = list(own.values())
        sizes = [result.sizes for result in found]
        # One model for all users: of the same run, or else of the uniform setting's.
        uniforms = {} if uniform in (None, setting.name) else by_setting[str(uniform)]
        one_model = {
            seed: result.baseline or (uniforms[seed].served if seed in uniforms else {})
            for seed, result in own.items()
        }
        differences = [
            _less(result.served, baseline[seed].served) if seed in baseline else {}
            for seed, result in own.items()
        ]
        costs = [_less(result.generic, one_model[seed]) for seed, result in own.items()]
        alone = setting.name == ablation.baseline
        rows.append(
            AblationRow(
                setting=setting.name,
                changes=setting.own,
                seeds=sorted(own),
                users=len({user for result in found for user in result.served}),
                validation=_crossed(
                    intervals.share,
                    [result.validation for result in chosen_by.values()],
                    [result.validation_sizes for result in chosen_by.values()],
                ),
                accuracy=_crossed(intervals.share, [result.served for result in found], sizes),
                difference=None if alone else _crossed(intervals.difference, differences, sizes),
                generic=_crossed(intervals.share, [result.generic for result in found], sizes),
                cost=_crossed(intervals.difference, costs, sizes),
                unseen=_crossed(intervals.share, [result.unseen for result in found], sizes),
                seconds=_mean([result.seconds for result in found]),
                **{key: _mean([result.figures.get(key) for result in found]) for key in PLAIN},
            )
        )
    there = {result.found.run.experiment for result in results}
    missing = [run.experiment for run in runs if run.experiment not in there]
    return AblationTable(ablation, rows, results, intervals, missing)


def _less(one: ByUser, other: ByUser) -> dict[str, float]:
    """The difference for every user that is in both."""
    return {user: one[user] - other[user] for user in one if user in other}


def _crossed(
    estimate: Callable[..., Estimate | None], by_seed: Sequence[ByUser], sizes: Sequence[ByUser]
) -> Estimate | None:
    """The mean over users and seeds, which are crossed; a user need not occur under every seed.

    Args:
        estimate: What makes it, `Intervals.share` or `difference`.
        by_seed: Of each seed, a figure of each user.
        sizes: Of each seed, on how many pairs each user's figure rests.
    """
    cells = [
        (value, user, seed, sizes[seed][user])
        for seed, values in enumerate(by_seed)
        for user, value in values.items()
    ]
    if not cells:
        return None
    values, users, seeds, pairs = map(list, zip(*cells, strict=True))
    return estimate(values, users, seeds, sizes=pairs)


def _mean(values: Sequence[float | None]) -> float | None:
    """None unless all are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _seconds(project: Project, run: AblationRun, method: str) -> float | None:
    """What a run's log says, if it was trained here, at one go and not out of the cache."""
    log = log_file(project, run.experiment)
    text = log.read_text(encoding="utf-8") if log.is_file() else ""
    found = re.findall(rf"^train@{re.escape(method)}: done in ([\d.]+) s$", text, re.M)
    return float(found[0]) if len(found) == 1 and RESUMED not in text else None

"""P-DPO and DPO on real people's choices: the whole pipeline, once for each data set and seed.

The runs are those of an ablation, `experiments/real/real-people.yaml`: experiments of DVC's, in a
clone of the last commit, of which none is made twice.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, Final, NamedTuple

import dvc.api
import numpy as np
import pandas as pd

from benchmarks.page import table
from benchmarks.real.figures import Mean, percent, verdict
from benchmarks.real.sets import pairs_file
from prlhf.data.ids import generator
from prlhf.infra.io import atomic_path
from prlhf.metrics.intervals import Estimate, Intervals
from prlhf.metrics.worst import lowest_tenth
from prlhf.project import ablation_runs, ablations, experiments
from prlhf.project.ablation_results import PER_USER
from prlhf.project.ablation_runs import FoundRun, Project
from prlhf.project.ablations import Ablation, Setting

EXPERIMENTS: Final = Path("experiments")
NAME: Final = "real-people"
BASELINE: Final = "dpo"
SHUFFLED: Final = "-shuffled"
"""End of the name of a control: a data set whose users are shuffled."""


class Run(NamedTuple):
    """What a run says.

    Attributes:
        seed: of the split and all else.
        models: the personalised ones.
        users: `reports/per_user.csv` of those who are tested.
        personal: whether the pretraining finds anything to gain.
        trust: how far each model's users may differ from the generic user.
    """

    seed: int
    models: Sequence[str]
    users: pd.DataFrame
    personal: bool
    trust: dict[str, float]


class Compared(NamedTuple):
    """A model against DPO, over all people and seeds.

    Attributes:
        people, pairs: who is tested, and on how much in all.
        shared, personal: mean accuracy by DPO and by the model.
        gain: its difference, of each person and seed.
        worst_tenth: the same for those whom DPO served worst on pairs of validation.
    """

    people: int
    pairs: int
    shared: float
    personal: float
    gain: Mean
    worst_tenth: Mean

    @property
    def verdict(self) -> str:
        """Whether somebody is hurt: gain, no harm, not shown or harm."""
        return "harm" if self.worst_tenth.high < 0 else verdict(self.gain)


def measure(data: Path, sets: Sequence[str], seeds: int, work: Path) -> str:
    """Make the runs that are missing, and return the table, Markdown.

    Args:
        data: the directory of the data sets.
        sets: their names; each takes its control along.
        seeds: how many of the seeds to run.
        work: where shuffled data are kept.

    Raises:
        UserError: a data set is not there, what the runs read is not committed, or some failed.
    """
    found = read(data.resolve(), sets, seeds, work.resolve())
    runs = ablations.resolve(found)
    project = ablation_runs.project_to_run()
    ablation_runs.make_missing(project, [(found, runs)], 1, lambda *_: None)
    there = ablation_runs.find(project, runs).values()
    return page(
        {
            setting.name: [read_run(project, each) for each in there if _of(each, setting)]
            for setting in found.settings
        }
    )


def read(data: Path, sets: Sequence[str], seeds: int, work: Path) -> Ablation:
    """The ablation for some of the data sets, which lie in the directory `data`."""
    found = ablations.read(NAME, EXPERIMENTS / "real")
    settings = []
    for setting in found.settings:
        name = setting.name.removesuffix(SHUFFLED)
        if name not in sets:
            continue
        path = pairs_file(data, name)
        if setting.name != name:
            path = shuffled(path, work / "shuffled" / name / path.name)
        changes = experiments.overrides(f"real-{name}", EXPERIMENTS) | setting.changes
        settings.append(setting._replace(changes=changes | {"data.path": str(path)}))
    return replace(found, settings=settings, seeds=found.seeds[:seeds])


def shuffled(path: Path, to: Path) -> Path:
    """Write a data set with users shuffled among all who chose between the same two texts.

    Pairs that one person alone was asked are shuffled with each other. Everybody has as many pairs
    as before.
    """
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    users = pd.Series([row["user_id"] for row in rows])
    pairs = pd.Series([tuple(sorted((row["chosen"], row["rejected"]))) for row in rows])
    asked = np.where(users.groupby(pairs).transform("nunique") > 1, pd.factorize(pairs)[0], -1)
    drawn = generator(0, "shuffled", path.parent.name).random(len(rows))
    others = users.to_numpy(copy=True)
    others[np.argsort(asked, kind="stable")] = users.to_numpy()[np.lexsort([drawn, asked])]
    written = [
        json.dumps(row | {"user_id": user}, ensure_ascii=False)
        for row, user in zip(rows, others.tolist(), strict=True)
    ]
    with atomic_path(to) as partial:
        # Without the time of writing: another file would make all runs stale.
        partial.write_bytes(gzip.compress("\n".join([*written, ""]).encode(), mtime=0))
    return to


def read_run(project: Project, found: FoundRun) -> Run:
    """Read a run's figures from the commit of its experiment, and from DVC's cache."""

    def output(path: str) -> Any:
        return json.loads(dvc.api.read(path, repo=str(project.root), rev=found.commit))

    text = ablation_runs.show(project, found.commit, PER_USER) or ""
    # People's ids are text, whatever they look like.
    users = pd.read_csv(
        StringIO(text), dtype={"user_id": str, "group": str}, keep_default_na=False, na_values=[""]
    )
    models = [name for name in found.run.params.compare.trained if name != BASELINE]
    accounts = {name: output(f"reports/curves/{name}.json") for name in models}
    return Run(
        seed=found.run.seed,
        models=models,
        users=users[users["seen"]].reset_index(drop=True),
        personal=output("reports/pretrain.json")["gain"]["personal"],
        trust={name: one["trust"]["trust"] for name, one in accounts.items() if "trust" in one},
    )


def compare(runs: Iterable[Run], model: str, intervals: Intervals | None = None) -> Compared:
    """A model against DPO under all seeds, on the same people and pairs."""
    intervals = intervals or Intervals()
    parts = []
    for run in runs:
        own, theirs = run.users[f"accuracy_{model}"], run.users[f"accuracy_{BASELINE}"]
        part = pd.DataFrame(
            {
                "user": run.users["user_id"],
                "seed": run.seed,
                "pairs": run.users["pairs"],
                "shared": theirs,
                "personal": own,
                "gain": own - theirs,
                "worst": run.users["user_id"].isin(_worst(run.users)),
            }
        )
        parts.append(part.dropna(subset="gain"))
    cells = pd.concat(parts, ignore_index=True)

    def gained(rows: pd.DataFrame) -> Mean:
        found = intervals.difference(rows["gain"], rows["user"], rows["seed"], sizes=rows["pairs"])
        return _mean(found)

    return Compared(
        people=cells["user"].nunique(),
        pairs=int(cells["pairs"].sum()),
        shared=float(cells["shared"].mean()),
        personal=float(cells["personal"].mean()),
        gain=gained(cells),
        worst_tenth=gained(cells[cells["worst"]]),
    )


def page(found: dict[str, Sequence[Run]]) -> str:
    """The table of all data sets, Markdown; accuracies in percent, differences in points."""
    header = ["Data, model", "People", "Choices", "DPO", "P-DPO", "Difference", "Worst tenth"]
    rows = []
    for name, runs in found.items():
        title = name.replace(SHUFFLED, ", users shuffled")
        for model in runs[0].models:
            figures = compare(runs, model)
            trust = [f"{run.trust[model]:g}" if model in run.trust else "-" for run in runs]
            rows.append(
                [
                    f"{title}, `{model}`",
                    str(figures.people),
                    f"{figures.pairs:,}",
                    f"{100 * figures.shared:.1f}",
                    f"{100 * figures.personal:.1f}",
                    percent(figures.gain),
                    percent(figures.worst_tenth),
                    f"{sum(run.personal for run in runs)} of {len(runs)}",
                    " ".join(trust),
                    figures.verdict,
                ]
            )
    return table([*header, "Anything to gain?", "Trust", "Says"], rows)


def _of(found: FoundRun, setting: Setting) -> bool:
    return found.run.setting == setting.name


def _worst(users: pd.DataFrame) -> pd.Series:
    """The ids of the tenth whom DPO serves worst on pairs of validation."""
    pairs = users["pairs_validation"].fillna(0)
    wins = users[f"validation_{BASELINE}"].fillna(0) * pairs
    counts = {"user_id": users["user_id"], "wins": wins, "ties": 0, "losses": pairs - wins}
    return lowest_tenth(pd.DataFrame(counts))


def _mean(found: Estimate | None) -> Mean:
    unknown = float("nan")
    if found is None:
        return Mean(unknown, unknown, unknown)
    return Mean(found.value, *(found.interval or (unknown, unknown)))

"""Stage `evaluate`: metrics, tables for plots and samples, from scored pairs and texts."""

from typing import Final

import pandas as pd

from prlhf.data import BASE_METHOD
from prlhf.data.reference import read_pairs, read_set_aside
from prlhf.infra.io import read_json, read_parquet, write_json
from prlhf.infra.tables import read_csv, write_csv
from prlhf.judging.fluency import Tables
from prlhf.metrics import metrics, tables
from prlhf.metrics.intervals import Intervals
from prlhf.metrics.preferences import Verdicts
from prlhf.params import CompareParams, EvaluateParams
from prlhf.stages import paths

PARAMS: Final = ("seed", "compare", "reward_models", "evaluate")


def run(
    *, seed: int, compare: CompareParams, reward_models: list[str], evaluate: EvaluateParams
) -> None:
    """Evaluate the base model and every other model in `compare.all`, and the reward models.

    Writes reports/metrics.json, its key figures in reports/headline.json, reports/evaluation.json
    (methods, judge, notes, samples), reports/per_user.csv, reports/per_user_wins.csv and the tables
    under reports/plots/.
    """
    users = read_parquet(paths.USERS, ["user_id", "group", "seen", "pairs_train"])
    seen = users["seen"].astype(bool)
    equal = users["user_id"].map(read_set_aside(paths.REFERENCE, "train")["user_id"].value_counts())
    trained_on = users["pairs_train"] - equal.fillna(0).astype("int64")
    dataset = read_json(paths.PREPARED / "dataset.json")
    judged = read_json(paths.JUDGED / "judge.json")
    kinds = [str(one["kind"]) for one in judged["judges"]]
    verdicts = None
    if kinds:
        comparisons = read_parquet(paths.JUDGED / "verdicts.parquet")
        verdicts = Verdicts(comparisons, read_parquet(paths.JUDGED / "choices.parquet"), kinds)
    result = metrics.Evaluation(
        {name: _tables(name) for name in compare.all},
        read_pairs(paths.PREPARED, paths.REFERENCE, "test"),
        users.loc[~seen, ["user_id", "group"]],
        units=_units(),
        training_pairs=trained_on[seen],
        verdicts=verdicts,
        intervals=Intervals(evaluate.confidence),
        margin=evaluate.margin,
        degenerate=judged["degenerate"],
        baseline=evaluate.baseline,
        reward_pairs={
            name: read_parquet(paths.reward_scores(name) / "pairs.parquet")
            for name in reward_models
        },
    )
    maps = {
        name: read_parquet(path)
        for name in compare.all
        if (path := paths.SCORES / name / "embeddings.parquet").exists()
    }
    curves = {
        name: read_csv(path, ["split"])
        for name in compare.trained
        if (path := paths.CURVES / f"{name}.csv").exists()
    }
    order = list(result.personalized)
    write_json(paths.METRICS, result.metrics)
    write_json(paths.HEADLINE, metrics.headline_figures(result.metrics, order, evaluate.baseline))
    write_json(
        paths.EVALUATION,
        {
            "dataset": {key: dataset.get(key) for key in ("name", "source", "task")},
            "judge": next(iter(judged["judges"]), None),
            "methods": [
                {"name": name, "personalised": personal}
                for name, personal in result.personalized.items()
            ],
            "baseline": evaluate.baseline,
            "subject": evaluate.subject,
            "margin": evaluate.margin,
            "notes": result.notes,
            "samples": tables.samples(
                result, prompts=evaluate.sample_prompts, users=evaluate.sample_users, seed=seed
            ),
        },
    )
    for path, table in {
        paths.REPORTS / "per_user.csv": tables.per_user(result),
        paths.REPORTS / "per_user_wins.csv": tables.per_user_wins(result),
        paths.PLOTS / "per_user_accuracy.csv": tables.user_accuracy(result, seed),
        paths.PLOTS / "lengths.csv": tables.lengths(result, seed),
        paths.PLOTS / "embeddings.csv": tables.embeddings(maps, seed),
        paths.PLOTS / "curves.csv": tables.curves(curves),
    }.items():
        write_csv(path, table)


def _units() -> pd.Series:
    """The unit of each held-out pair, by its id."""
    splits = ("validation", "test", "unseen")
    parts = [read_parquet(paths.split_table(split), ["pair_id", "unit"]) for split in splits]
    return pd.concat(parts).drop_duplicates("pair_id").set_index("pair_id")["unit"]


def _tables(name: str) -> Tables:
    pairs = paths.SCORES / name / "pairs.parquet"
    return Tables(
        generated=read_parquet(paths.GENERATED / f"{name}.parquet"),
        scores=read_parquet(paths.SCORES / name / "generations.parquet"),
        # The base model is its own reference: its margins are all zero, and not scored.
        pairs=None if name == BASE_METHOD and not pairs.exists() else read_parquet(pairs),
    )

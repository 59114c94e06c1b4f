"""Stage `evaluate`: metrics, tables for plots and samples, from scored pairs and texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from prlhf.evaluation import metrics, tables
from prlhf.evaluation.answers import BASE
from prlhf.evaluation.key_figures import key_figures
from prlhf.evaluation.measured import Tables, Thresholds
from prlhf.evaluation.statistics import Bootstrap
from prlhf.evaluation.wins import Verdicts
from prlhf.io import read_json, read_parquet, write_json, write_text

if TYPE_CHECKING:
    from prlhf.params import CompareParams, EvaluateParams

PARAMS = ("seed", "compare", "reward_models", "evaluate")

PREPARED = Path("data/prepared")
GENERATED = Path("data/generated")
SCORES = Path("data/scores")
JUDGED = Path("data/judged")
REPORTS = Path("reports")


def run(
    *, seed: int, compare: CompareParams, reward_models: list[str], evaluate: EvaluateParams
) -> None:
    """Evaluate the base model and every other model in `compare.all`, and the reward models.

    Writes reports/metrics.json, its key figures in reports/headline.json, reports/evaluation.json
    (judge, notes, samples), reports/per_user.csv, reports/per_user_wins.csv and the tables under
    reports/plots/.
    """
    users = read_parquet(PREPARED / "users.parquet", ["user_id", "group", "seen"])
    dataset = read_json(PREPARED / "dataset.json")
    judged = read_json(JUDGED / "judge.json")
    result = metrics.evaluate(
        {name: _tables(name) for name in compare.all},
        read_parquet(PREPARED / "test.parquet"),
        users[~users["seen"].astype(bool)],
        verdicts=_verdicts(judged),
        bootstrap=Bootstrap(seed, evaluate.bootstrap, evaluate.confidence),
        thresholds=Thresholds(**judged["degenerate"]),
        reward_models={
            name: read_parquet(SCORES / f"reward_{name}" / "pairs.parquet")
            for name in reward_models
        },
    )
    maps = {
        name: read_parquet(path)
        for name in compare.all
        if (path := SCORES / name / "embeddings.parquet").exists()
    }
    curves = {
        name: pd.read_csv(path)
        for name in compare.trained
        if (path := REPORTS / "curves" / f"{name}.csv").exists()
    }
    write_json(REPORTS / "metrics.json", result.metrics)
    write_json(REPORTS / "headline.json", key_figures(result.metrics))
    write_json(
        REPORTS / "evaluation.json",
        {
            "dataset": {key: dataset.get(key) for key in ("name", "source", "task")},
            "judge": next(iter(judged["judges"]), None),
            "methods": [
                {"name": name, "personalised": personal}
                for name, personal in result.personalised.items()
            ],
            "notes": result.notes,
            "samples": tables.samples(
                result, prompts=evaluate.sample_prompts, users=evaluate.sample_users, seed=seed
            ),
        },
    )
    _write_csv("per_user.csv", tables.per_user(result))
    _write_csv("per_user_wins.csv", tables.per_user_wins(result))
    _write_csv("plots/per_user_accuracy.csv", tables.user_accuracy(result, seed))
    _write_csv("plots/lengths.csv", tables.lengths(result, seed))
    _write_csv("plots/embeddings.csv", tables.embeddings(maps, seed))
    _write_csv("plots/curves.csv", tables.curves(curves))


def _verdicts(judged: Mapping[str, Any]) -> Verdicts | None:
    kinds = [str(one["kind"]) for one in judged["judges"]]
    if not kinds:
        return None
    return Verdicts(
        read_parquet(JUDGED / "verdicts.parquet"), read_parquet(JUDGED / "choices.parquet"), kinds
    )


def _tables(name: str) -> Tables:
    pairs = SCORES / name / "pairs.parquet"
    return Tables(
        generated=read_parquet(GENERATED / f"{name}.parquet"),
        scores=read_parquet(SCORES / name / "generations.parquet"),
        # The base model is its own reference: its margins are all zero, and not scored.
        pairs=None if name == BASE and not pairs.exists() else read_parquet(pairs),
    )


def _write_csv(name: str, table: pd.DataFrame) -> None:
    write_text(REPORTS / name, table.to_csv(index=False, lineterminator="\n"))

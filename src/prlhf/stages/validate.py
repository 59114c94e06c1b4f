"""Stage `validate`: quarantine faulty rows, split the rest, verify the result."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prlhf.data.contract import SPLITS
from prlhf.data.validation import Outcome, explain, prepare
from prlhf.errors import UserError
from prlhf.io import atomic_path, read_json, read_parquet, write_json, write_parquet
from prlhf.progress import say

if TYPE_CHECKING:
    import pandas as pd

    from prlhf.data.splits import Prepared
    from prlhf.params import SplitParams, ValidateParams

PARAMS: Final = ("seed", "validate", "split")

INPUT: Final = Path("data/ingested")
OUTPUT: Final = Path("data/prepared")
SUMMARY: Final = Path("reports/validation.json")
DATA_DOCS: Final = Path("reports/data_docs")
DIAGNOSIS: Final = Path(".cache/validation")
"""Where to look when the data are refused. No output of the stage: DVC would take it away."""


def run(*, seed: int, rules: ValidateParams, split: SplitParams) -> None:
    """Write `data/prepared/`, `reports/validation.json` and `reports/data_docs/`.

    Nothing is replaced before everything is written; data that are refused replace nothing and
    leave what was found in `.cache/validation/`.

    Raises:
        UserError: The data are not fit for use.
    """
    dataset = read_json(INPUT / "dataset.json")
    # Not kept here, so that they can go when they have been sorted.
    outcome = prepare(
        read_parquet(INPUT / "rows.parquet"),
        name=dataset["name"],
        seed=seed,
        rules=rules,
        shares=split,
    )
    if outcome.prepared is None:
        assert outcome.error is not None
        _write_diagnosis(outcome)
        raise UserError(
            outcome.error.problem,
            where=outcome.error.where,
            fix="; ".join(filter(None, [outcome.error.fix, f"details: {DIAGNOSIS}/"])),
        )
    with contextlib.ExitStack() as stack:
        prepared = stack.enter_context(atomic_path(OUTPUT, directory=True))
        docs = stack.enter_context(atomic_path(DATA_DOCS, directory=True))
        _write_prepared(prepared, outcome.prepared, outcome.quarantine)
        write_json(prepared / "dataset.json", dataset | {"splits": outcome.summary["pairs"]})
        # The pages name the time of the run, so their hash differs from run to run. No stage
        # depends on them, and validation.json holds the same findings without it.
        outcome.validator.write_docs(docs)
        write_json(SUMMARY, outcome.summary)
    shutil.rmtree(DIAGNOSIS, ignore_errors=True)
    _report(outcome)


def _write_prepared(directory: Path, prepared: Prepared, quarantine: pd.DataFrame) -> None:
    for name in (*SPLITS, "unseen"):
        write_parquet(directory / f"{name}.parquet", prepared.part(name))
    write_parquet(directory / "users.parquet", prepared.users)
    write_parquet(directory / "quarantine.parquet", quarantine)


def _write_diagnosis(outcome: Outcome) -> None:
    quarantine = outcome.quarantine
    clipped = {
        name: quarantine[name].str.slice(0, 200) for name in ("prompt", "chosen", "rejected")
    }
    columns = ["source", "row", "reason", "user_id", *clipped]
    with atomic_path(DIAGNOSIS, directory=True) as directory:
        write_parquet(directory / "quarantine.parquet", quarantine)
        quarantine.assign(**clipped)[columns].to_csv(directory / "quarantine.csv", index=False)
        write_json(directory / "validation.json", outcome.summary)
        docs = directory / "data_docs"
        docs.mkdir()
        outcome.validator.write_docs(docs)


def _report(outcome: Outcome) -> None:
    rows, counts = outcome.summary["rows"], outcome.summary["quarantined"]
    pairs = ", ".join(f"{count} {name}" for name, count in outcome.summary["pairs"].items())
    say(f"validate: {rows['usable']} of {rows['ingested']} rows usable: {pairs}")
    if rows["quarantined"]:
        say(f"validate: quarantined {explain(counts)}; see {OUTPUT}/quarantine.parquet")
    for warning in outcome.warnings:
        say(f"validate: warning: {warning}")

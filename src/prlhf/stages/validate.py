"""Stage `validate`: quarantine faulty rows, split the rest, verify the result."""

import contextlib
import shutil
from typing import Final

from prlhf.data import SPLITS
from prlhf.infra.errors import UserError
from prlhf.infra.io import atomic_path, read_json, read_parquet, write_json, write_parquet
from prlhf.infra.progress import say
from prlhf.infra.tables import write_csv
from prlhf.params import SplitParams, ValidateParams
from prlhf.stages.paths import DATA_DOCS, DIAGNOSIS, INGESTED, PREPARED, VALIDATION
from prlhf.validation.prepare import ValidationResult, explain, prepare

PARAMS: Final = ("seed", "data.label_noise", "validate", "split")


def run(*, seed: int, label_noise: float, rules: ValidateParams, split: SplitParams) -> None:
    """Write `data/prepared/`, `reports/validation.json` and `reports/data_docs/`.

    Nothing is replaced before everything is written. Data that are refused replace nothing; what
    was found in them is in `.cache/validation/`.

    Raises:
        UserError: The data are not fit for use.
    """
    dataset = read_json(INGESTED / "dataset.json")
    result = prepare(
        read_parquet(INGESTED / "rows.parquet"),  # no name here, so that `prepare` can free them
        name=dataset["name"],
        seed=seed,
        rules=rules,
        shares=split,
        label_noise=label_noise,
    )
    if result.prepared is None:
        assert result.error is not None
        _write_diagnosis(result)
        for note in result.spellings:
            say(f"validate: warning: {note}")
        raise UserError(
            result.error.problem,
            where=result.error.where,
            fix="; ".join(filter(None, [result.error.fix, f"details: {DIAGNOSIS}/"])),
        )
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(atomic_path(PREPARED, directory=True))
        docs = stack.enter_context(atomic_path(DATA_DOCS, directory=True))
        for name in (*SPLITS, "unseen"):
            write_parquet(directory / f"{name}.parquet", result.prepared.part(name))
        write_parquet(directory / "users.parquet", result.prepared.users)
        write_parquet(directory / "quarantine.parquet", result.quarantine)
        write_json(directory / "dataset.json", dataset | {"splits": result.summary["pairs"]})
        # The pages name the time of the run, so their hash differs from run to run. No stage
        # depends on them, and validation.json holds the same findings without it.
        result.validator.write_docs(docs)
        write_json(VALIDATION, result.summary)
    shutil.rmtree(DIAGNOSIS, ignore_errors=True)
    _report(result)


def _write_diagnosis(result: ValidationResult) -> None:
    quarantine = result.quarantine
    clipped = {
        name: quarantine[name].str.slice(0, 200) for name in ("prompt", "chosen", "rejected")
    }
    columns = ["source", "row", "reason", "user_id", *clipped]
    with atomic_path(DIAGNOSIS, directory=True) as directory:
        write_parquet(directory / "quarantine.parquet", quarantine)
        write_csv(directory / "quarantine.csv", quarantine.assign(**clipped)[columns])
        write_json(directory / "validation.json", result.summary)
        docs = directory / "data_docs"
        docs.mkdir()
        result.validator.write_docs(docs)


def _report(result: ValidationResult) -> None:
    rows, counts = result.summary["rows"], result.summary["quarantined"]
    pairs = ", ".join(f"{count} {name}" for name, count in result.summary["pairs"].items())
    say(f"validate: {rows['usable']} of {rows['ingested']} rows usable: {pairs}")
    if rows["quarantined"]:
        say(f"validate: quarantined {explain(counts)}; see {PREPARED}/quarantine.parquet")
    for warning in result.warnings:
        say(f"validate: warning: {warning}")

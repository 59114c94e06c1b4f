"""Parts `files` and `cli`: damaged files of feedback, and the books that must balance.

Rows in = rows used + rows set aside + rows refused, each with a place. What is in a file is counted
here by other means than the pipeline's.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from benchmarks.chaos.damage import Row
from benchmarks.chaos.tables import Feedback, write
from benchmarks.chaos.trial import REFUSED, USED, Fault, Part, Trial, plain, quiet, refusal
from prlhf.infra.errors import UserError
from prlhf.infra.io import read_json, read_parquet
from prlhf.params import Params, load
from prlhf.stages import ingest
from prlhf.stages.paths import INGESTED, PARAMETERS
from prlhf.validation.checks import ROW_FAULTS

ROOT: Final = Path(__file__).resolve().parents[2]
MEMORY: Final = 4 * 2**30
PATIENCE: Final = 300.0
COMMAND_PATIENCE: Final = 900.0
SPEAKERS: Final = ("ingest: ", "validate: ", "feedback", "store")
"""How the lines of the two stages begin: with their name, or the file's that they are about."""


def attempt(trial: Trial, params: Params) -> tuple[str, str]:
    """Ingest and validate one data set in this process, as the two stages do."""
    made = write(trial.random, Path())
    trial.tries(", ".join(made.about))
    by = ["unit", "unit", "unit", "prompt", "response", *(["time"] * ("time" in made.columns))]
    try:
        _ingest(made, params)
        rows = read_parquet(INGESTED / "rows.parquet")
        _accounted(made, rows, trial.said())
        _validate(rows, params, trial.random.choice(by))
    except UserError as error:
        said = trial.said()
        quiet(said, *SPEAKERS)
        return REFUSED, refusal(error)
    quiet(trial.said(), *SPEAKERS)
    return USED, ""


def _ingest(made: Feedback, params: Params) -> None:
    columns = params.data.columns.model_copy(update=made.columns)
    changes = {"source": "local", "path": str(made.path), "columns": columns}
    ingest.run(seed=params.seed, data=params.data.model_copy(update=changes))


def _validate(rows: pd.DataFrame, params: Params, by: str) -> None:
    # Imported here: Great Expectations takes seconds.
    from prlhf.validation.prepare import REASONS, prepare

    result = prepare(
        rows.copy(),
        name=read_json(INGESTED / "dataset.json")["name"],
        seed=params.seed,
        rules=params.validate_.model_copy(update={"max_quarantined": 0.9}),
        shares=params.split.model_copy(update={"by": by}),
        label_noise=0.0,
    )
    for warning in result.warnings:
        plain(warning)
    if result.prepared is None:
        assert result.error is not None
        raise result.error
    aside = result.quarantine
    unknown = set(aside["reason"]) - set(REASONS)
    if unknown or aside["reason"].isna().any() or not set(ROW_FAULTS) <= set(REASONS):
        raise Fault("no reason", f"rows set aside for {unknown or 'nothing'}")
    there = Counter(rows["row"])
    here = Counter([*aside["row"], *result.prepared.pairs["row"]])
    if there != here:
        raise Fault(
            "books",
            f"{len(rows)} rows in, {len(result.prepared.pairs)} used, {len(aside)} set aside; "
            f"row {next(iter((there - here) or (here - there)))} is the first that differs",
        )


# -- what is in a file -----------------------------------------------------------------------------


def _accounted(made: Feedback, rows: pd.DataFrame, said: str) -> None:
    """Check that every row of every file was ingested, in its place, or is named as not read."""
    if made.path.is_dir():
        files = sorted(path for path in made.path.rglob("*") if path.is_file())
    else:
        files = [made.path]
    left = len(rows)
    for path in files:
        own = rows[[Path(str(source)).name == path.name for source in rows["source"]]]
        if own.empty:
            if not _named(path, made.path, said):
                raise Fault("silent", f"{path.name} is not read, and not named")
            continue
        left -= len(own)
        of_suffix = "\t" if path.suffix == ".tsv" else ","
        delimiter = of_suffix if made.path.is_dir() else made.delimiter
        expected = list(_places(path, delimiter))
        if Counter(expected) != Counter(own["row"].tolist()):
            raise Fault(
                "books",
                f"{path.name} has {len(expected)} rows, {len(own)} were ingested; "
                f"{_differing(expected, own['row'].tolist())}",
            )
    if left:
        raise Fault("books", f"{left} rows are of no file")
    if made.path.is_file() and not made.damaged:
        _same_words(made.rows, rows)


def _same_words(given: list[Row], rows: pd.DataFrame) -> None:
    """Check that a person's name and choice, where they are plain, are those of their own row."""
    for name, start in (("user_id", "user "), ("chosen", "answer ")):
        for row, found in zip(given, rows[name], strict=True):
            text = row.get(name)
            if isinstance(text, str) and text.startswith(start):
                words, theirs = " ".join(text.split()), " ".join(str(found).split())
                if unicodedata.normalize("NFC", words.strip("\u200b")) != theirs.strip("\u200b"):
                    raise Fault("another value", f"{name} {text!r} became {found!r}")


def _named(path: Path, root: Path, said: str) -> bool:
    """Whether a file, or a directory that it lies in, is spoken of."""
    names = path.relative_to(root).parts
    return any(name in said for name in names)


def _differing(expected: list[int], found: list[int]) -> str:
    lost, more = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
    return f"missing {sorted(lost)[:5]}, too many {sorted(more)[:5]}"


def _places(path: Path, delimiter: str) -> Iterator[int]:
    """Where each row of a file stands: its line, or its number."""
    content, name = path.read_bytes(), path.name.lower()
    if name.endswith(".gz"):
        content, name = gzip.decompress(content), name.removesuffix(".gz")
    elif name.endswith(".zst"):
        stream = pa.CompressedInputStream(pa.BufferReader(content), "zstd")
        content, name = stream.read(), name.removesuffix(".zst")
    if name.endswith(".parquet"):
        yield from range(1, pq.ParquetFile(io.BytesIO(content)).metadata.num_rows + 1)
        return
    text = content.decode("utf-8-sig")
    if name.endswith((".csv", ".tsv")):
        yield from _delimited_places(text, delimiter)
        return
    if (elements := _listed(text)) is not None:  # whatever the file is called
        yield from range(1, len(elements) + 1)
        return
    yield from (
        number for number, line in enumerate(text.split("\n"), 1) if line.strip(" \t\r\n\f\v")
    )


def _listed(text: str) -> list[Any] | None:
    """The rows of a JSON document: a list, or the one list of objects in an object."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if isinstance(found, dict):
        lists = [
            v for v in found.values() if isinstance(v, list) and all(isinstance(x, dict) for x in v)
        ]
        found = max(lists, key=len, default=None) if "chosen" not in found else None
    return found if isinstance(found, list) else None


def _delimited_places(text: str, delimiter: str) -> Iterator[int]:
    start = 1
    lines = text.splitlines(keepends=True) if "\n" not in text else io.StringIO(text, newline="\n")
    reader = csv.reader(lines, delimiter=delimiter)
    header = False
    for row in reader:
        if row and not (start == 1 and text.startswith("sep=")):
            if header:
                yield start
            header = True
        start = reader.line_num + 1


# -- through the command line ----------------------------------------------------------------------


def attempt_command(trial: Trial, _: Any) -> tuple[str, str]:
    """`prlhf ingest` and `prlhf validate`, each in a process of its own."""
    made = write(trial.random, Path())
    trial.tries(", ".join(made.about))
    yaml = YAML()
    document = yaml.load(ROOT / PARAMETERS)
    document["data"] |= {"source": "local", "path": str(made.path)}
    document["data"]["columns"] |= made.columns
    document["validate"]["max_quarantined"] = 0.9
    yaml.dump(document, PARAMETERS)
    said = _command("ingest")
    if said is not None:
        return REFUSED, said
    rows = read_parquet(INGESTED / "rows.parquet")
    said = _command("validate")
    if said is not None:
        return REFUSED, said
    parts = [read_parquet(Path(f"data/prepared/{name}.parquet")) for name in TABLES]
    if sum(map(len, parts)) != len(rows):
        counts = ", ".join(f"{len(part)} {name}" for name, part in zip(TABLES, parts, strict=True))
        raise Fault("books", f"{len(rows)} rows in, {counts}")
    return USED, ""


TABLES: Final = ("train", "validation", "test", "unseen", "quarantine")


def _command(stage: str) -> str | None:
    """What a stage refuses the data for; None if it does not."""
    done = subprocess.run(
        [sys.executable, "-m", "prlhf", stage],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    if "Traceback" in err:
        raise Fault("traceback", err.strip().splitlines()[-1][:300])
    quiet(out + err, "error: ", *SPEAKERS)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    if (done.returncode, len(errors)) == (0, 0):
        return None
    if (done.returncode, len(errors)) != (2, 1):
        raise Fault("lines", f"exit status {done.returncode} with {len(errors)} lines: {err[:300]}")
    return errors[0].removeprefix("error: ")


def setup(_: Path) -> Params:
    """The project's own parameters, and what takes long to import."""
    import prlhf.validation.prepare  # noqa: F401

    return load(ROOT / PARAMETERS)


FILES: Final = Part("files", "Damaged files, in process", 20_000, attempt, PATIENCE, MEMORY, setup)
COMMANDS: Final = Part(
    "cli", "Damaged files, through the command line", 200, attempt_command, COMMAND_PATIENCE
)

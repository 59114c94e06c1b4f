"""What ingestion and validation take for much feedback: time and memory of the real commands.

    python benchmarks/data.py                        1,000,000 pairs of 100,000 users (minutes)
    python benchmarks/data.py --quick                20,000 pairs of 2,000 users
    python benchmarks/data.py --formats parquet --user-text --json data.json

Feedback is made up, with the lengths and the faults of real logs, and written once per format;
`prlhf ingest` and `prlhf validate` then run on it in a temporary project. Of each the table has the
wall-clock time, the processor time (what counts on a busy machine) and the largest resident memory.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ruamel.yaml import YAML

ROOT: Final = Path(__file__).resolve().parent.parent
FORMATS: Final = ("jsonl", "jsonl.gz", "csv", "csv.gz", "parquet")
STAGES: Final = ("ingest", "validate")
CHUNK: Final = 50_000
"""Rows made and written at a time."""

FAULTS: Final = {
    "duplicate": 0.01,
    "contradiction": 0.002,
    "no_user": 0.001,
    "blank_user": 0.0005,
    "no_prompt": 0.001,
    "blank_prompt": 0.0005,
    "no_chosen": 0.001,
    "blank_rejected": 0.001,
    "equal": 0.001,
    "long_prompt": 0.0001,
    "long_response": 0.0001,
    "bad_weight": 0.001,
}
"""Shares of rows that are made faulty. Users with few pairs are a fault, too: some come anyway."""


@dataclass(frozen=True)
class Measured:
    """What one command took: seconds, and MiB of resident memory at most."""

    file: str
    stage: str
    wall: float
    cpu: float
    peak_mib: float
    said: list[str]


class Feedback:
    """Made-up judgements, the same for the same arguments.

    Args:
        rows: How many.
        users: How many users they are of, each row's drawn at random.
        prompts: How many distinct prompts.
        user_text: Whether users say something of themselves.
        chat: Share of the prompts that are lists of messages; all, or text and lists mix.
        seed: Of all that is drawn.
    """

    def __init__(
        self,
        rows: int,
        users: int,
        prompts: int,
        *,
        user_text: bool = False,
        chat: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.rows = rows
        self.users = users
        self.user_text = user_text
        self._random = np.random.default_rng(seed)
        self._pool, self._starts = _pool(self._random)
        self._prompts = self._spans(prompts, 120, 280)
        self._about = self._spans(users, 60, 140)
        self._chat = self._random.random(prompts) < chat

    def chunks(self) -> Iterator[list[dict[str, Any]]]:
        """All rows, some at a time."""
        for start in range(0, self.rows, CHUNK):
            yield self._chunk(min(CHUNK, self.rows - start))

    def _spans(self, n: int, shortest: int, longest: int) -> list[tuple[int, int]]:
        starts = self._random.choice(self._starts, n)
        lengths = self._random.integers(shortest, longest, n)
        return list(zip(starts.tolist(), lengths.tolist(), strict=True))

    def _text(self, span: tuple[int, int]) -> str:
        start, length = span
        return self._pool[start : start + length]

    def _prompt(self, number: int) -> Any:
        text = self._text(self._prompts[number])
        if not self._chat[number]:
            return text
        first = {"role": "user", "content": text[:60] + "?"}
        turns = [first, {"role": "assistant", "content": text[60:120] + "."}] if number % 3 else []
        return [*turns, {"role": "user", "content": text[120:] + "?"}]

    def _chunk(self, n: int) -> list[dict[str, Any]]:
        random = self._random
        users = random.integers(self.users, size=n).tolist()
        prompts = random.integers(len(self._prompts), size=n).tolist()
        weights = np.round(random.uniform(0.5, 2.0, n), 3).tolist()
        sides = [self._spans(n, 150, 400) for _ in range(2)]
        found = [
            {
                "user_id": f"user-{user:06}",
                "prompt": self._prompt(prompt),
                "chosen": self._text(chosen),
                "rejected": self._text(rejected),
                "weight": weight,
                "group": f"group {user % 7}",
                "session": f"{user:x}-{prompt:x}",
            }
            | ({"user_text": self._text(self._about[user])} if self.user_text else {})
            for user, prompt, weight, chosen, rejected in zip(
                users, prompts, weights, *sides, strict=True
            )
        ]
        self._spoil(found)
        return found

    def _spoil(self, rows: list[dict[str, Any]]) -> None:
        n = len(rows)
        places = self._random.permutation(n).tolist()
        for fault, share in FAULTS.items():
            for _ in range(max(1, round(n * share)) if n > 3 * len(FAULTS) else 0):
                row = rows[places.pop()]
                if fault in ("duplicate", "contradiction"):
                    row |= rows[places.pop()]
                if fault == "contradiction":
                    row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
                row |= {
                    "no_user": {"user_id": None},
                    "blank_user": {"user_id": " \t"},
                    "no_prompt": {"prompt": None},
                    "blank_prompt": {"prompt": [] if isinstance(row["prompt"], list) else " \n"},
                    "no_chosen": {"chosen": None},
                    "blank_rejected": {"rejected": "\u2003\n"},
                    "equal": {"rejected": f"{row['chosen']} "},
                    "long_response": {"chosen": self._pool[:9000]},
                    "bad_weight": {"weight": -1.0},
                }.get(fault, {})
                if fault == "long_prompt":
                    text = self._pool[:21000]
                    chat = isinstance(row["prompt"], list)
                    row["prompt"] = [{"role": "user", "content": text}] if chat else text


def write(feedback: Feedback, path: Path) -> None:
    """Write all rows to a new file, in the format that its name says."""
    if path.suffix == ".parquet":
        writer = None
        for rows in feedback.chunks():
            table = pa.Table.from_pylist(rows)
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
        assert writer is not None
        writer.close()
        return
    gzipped = path.suffix == ".gz"
    text: dict[str, Any] = {"encoding": "utf-8", "newline": ""}
    with gzip.open(path, "wt", 1, **text) if gzipped else path.open("w", **text) as file:
        delimited = csv.writer(file) if ".csv" in path.suffixes else None
        for number, rows in enumerate(feedback.chunks()):
            if delimited is None:
                file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
                continue
            if not number:
                delimited.writerow(rows[0])
            delimited.writerows(row.values() for row in rows)


def project(path: Path, feedback: Path, *, user_text: bool) -> None:
    """Make `path` a project that reads this feedback: params.yaml is all that the stages need."""
    path.mkdir(parents=True)
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params["data"] |= {"source": "local", "path": str(feedback.resolve())}
    params["data"]["columns"] |= {"weight": "weight", "group": "group"}
    if user_text:
        params["data"]["columns"]["user_text"] = "user_text"
    yaml.dump(params, path / "params.yaml")


def measure(stage: str, where: Path, file: str) -> Measured:
    """Run `prlhf STAGE` in a project, with this checkout's sources.

    Raises:
        SystemExit: The command failed.
    """
    log = where / f"{stage}.log"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    started = time.monotonic()
    with log.open("w") as output:
        # wait4 tells the use of this one child; what getrusage says is of all there have been.
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-c", _COMMAND, str(where), stage],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, output.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, output.fileno(), 2),
            ],
        )
        _, status, usage = os.wait4(pid, 0)
    wall = time.monotonic() - started
    said = log.read_text().splitlines()
    if status:
        raise SystemExit(f"prlhf {stage} failed on {file}:\n" + "\n".join(said))
    cpu = usage.ru_utime + usage.ru_stime
    # Linux counts kilobytes, macOS bytes.
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Measured(file, stage, round(wall, 1), round(cpu, 1), round(peak), said)


_COMMAND: Final = (
    "import os, sys; os.chdir(sys.argv.pop(1)); from prlhf.cli import main; sys.exit(main())"
)


def table(results: list[Measured]) -> str:
    """The figures as a table for a terminal or a Markdown page."""
    lines = [
        "| File | Stage | Wall clock, s | Processor, s | Peak memory, MiB |",
        "|---|---|--:|--:|--:|",
    ]
    lines += [
        f"| {each.file} | {each.stage} | {each.wall:.1f} | {each.cpu:.1f} | {each.peak_mib:,.0f} |"
        for each in results
    ]
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, make the data, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--prompts", type=int, help="distinct prompts; half as many as rows")
    parser.add_argument("--quick", action="store_true", help="20,000 rows of 2,000 users")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["jsonl", "parquet"])
    parser.add_argument("--user-text", action="store_true", help="users say something, too")
    parser.add_argument("--chat", type=float, default=0.0, help="share of prompts of messages")
    parser.add_argument(
        "--work", type=Path, help="keep feedback and projects here; read them again"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()
    if options.chat and any(kind.startswith("csv") for kind in options.formats):
        parser.error("a CSV file holds no messages: --chat is for the other formats")
    if options.quick:
        options.rows, options.users = 20_000, 2_000
    prompts = options.prompts or max(1, options.rows // 2)
    work = options.work or Path(tempfile.mkdtemp(prefix="prlhf-benchmark-"))
    results = []
    try:
        for kind in options.formats:
            file = work / f"feedback.{kind}"
            if not file.exists():
                sys.stderr.write(f"writing {file}\n")
                file.parent.mkdir(parents=True, exist_ok=True)
                made = Feedback(
                    options.rows,
                    options.users,
                    prompts,
                    user_text=options.user_text,
                    chat=options.chat,
                )
                write(made, file)
            where = work / f"project-{kind}"
            shutil.rmtree(where, ignore_errors=True)
            project(where, file, user_text=options.user_text)
            for stage in STAGES:
                results.append(measure(stage, where, file.name))
                sys.stderr.write("\n".join(["", *results[-1].said, table(results[-1:]), ""]))
    finally:
        if options.work is None:
            shutil.rmtree(work, ignore_errors=True)
    sys.stdout.write(f"\n{options.rows:,} rows, {options.users:,} users\n\n{table(results)}\n")
    if options.json:
        report = {
            "rows": options.rows,
            "users": options.users,
            "prompts": prompts,
            "user_text": options.user_text,
            "chat": options.chat,
            "results": [asdict(each) for each in results],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _pool(random: np.random.Generator) -> tuple[str, np.ndarray[Any, np.dtype[np.int64]]]:
    """A long text of random words with some punctuation, and where its words begin."""
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(random.choice(letters, size)) for size in random.integers(2, 11, 4000)]
    words += ["naïve", "café", '"so-called"', "漢字", "🙂", "C:\\data", "end.\n\nNext", "well,\tso"]
    drawn = np.array(words, dtype=object)[random.integers(len(words), size=1_000_000)]
    lengths = np.array([len(word) for word in drawn.tolist()]) + 1
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return " ".join(drawn.tolist()), starts[: -len(starts) // 50]


if __name__ == "__main__":
    main()

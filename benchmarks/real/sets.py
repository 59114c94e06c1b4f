"""Real people's choices, read from a directory outside of the project, and their features."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pandas as pd

from prlhf.data.prompts import canonical_prompt
from prlhf.data.reference import load_reference
from prlhf.infra.errors import UserError
from prlhf.infra.io import atomic_path
from prlhf.models.base import Encoder, load_base
from prlhf.models.personalized import PersonalizedLM
from prlhf.people.features import Examples
from prlhf.reference import reference_pass

LIMITS: Final = {"max_prompt": 192, "max_response": 256}
"""Longest texts, in tokens."""


@dataclass(frozen=True)
class RealSet:
    """One of the data sets.

    Attributes:
        name: its directory.
        by_text: people know it by its texts, each of which is on one side of a split; else prompts
            are.
        tested: of the parts that its units are divided into, how many are held out in turn; all,
            where units are few and differ.
    """

    name: str
    by_text: bool = False
    tested: int = 4


SETS: Final = {
    found.name: found
    for found in (
        RealSet("polis", by_text=True, tested=1),
        RealSet("llmfao"),
        RealSet("crowdrag25"),
        RealSet("ukpconvarg1"),
    )
}


def pairs_file(directory: Path, name: str) -> Path:
    """The file of a data set.

    Raises:
        UserError: it is not there.
    """
    path = directory / name / "pairs.jsonl.gz"
    if not path.is_file():
        raise UserError(
            "is not there", where=path, fix="name the data with --data or PRLHF_REAL_DATA"
        )
    return path


def read_pairs(directory: Path, name: str) -> pd.DataFrame:
    """All pairs of a data set, as a prepared table has them; users' numbers count from 1.

    Raises:
        UserError: it is not there.
    """
    with gzip.open(pairs_file(directory, name), "rt", encoding="utf-8") as lines:
        table = pd.DataFrame([json.loads(line) for line in lines])
    return pd.DataFrame(
        {
            "user_index": 1 + pd.factorize(table["user_id"], sort=True)[0],
            "prompt": [canonical_prompt(prompt) for prompt in table["prompt"]],
            "chosen": table["chosen"],
            "rejected": table["rejected"],
            "unit": table["prompt"],
            "weight": 1.0,
        }
    )


def read_examples(directory: Path, found: RealSet, base: Path, cache: Path) -> Examples:
    """All pairs of a data set, with features that are computed once and kept in `cache`."""
    table = read_pairs(directory, found.name)
    kept = cache / found.name
    if not kept.is_dir():
        loaded = load_base(base, "auto")
        lm = PersonalizedLM.reference(loaded, Encoder(loaded.chat, **LIMITS))
        with atomic_path(kept, directory=True) as partial:
            reference_pass(lm, [table], directory=partial)
    examples = Examples.of(table, load_reference(kept), by_text=found.by_text)
    # Features are read often here, and small.
    return replace(examples, texts=examples.texts.float())

"""Parameters and small data sets for the tests of the data side."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prlhf.params import DataParams, SplitParams, ValidateParams

COLUMNS: dict[str, str | None] = {
    "user_id": "user_id",
    "prompt": "prompt",
    "chosen": "chosen",
    "rejected": "rejected",
    "user_text": None,
    "weight": None,
    "group": None,
    "side": None,
    "unit": None,
    "time": None,
}


@pytest.fixture
def columns() -> Callable[..., dict[str, str | None]]:
    """The default column mapping, with changes."""
    return lambda **changes: COLUMNS | changes


@pytest.fixture
def data_params() -> Callable[..., DataParams]:
    """A `data` section, with changes; `columns` are changes of the mapping."""

    def make(**changes: Any) -> DataParams:
        section = {
            "source": "local",
            "name": "length",
            "path": "pairs.jsonl",
            "hub": {"id": None, "config": None, "split": "train", "revision": None},
            "tldr": {"users": 3, "labels": "length", "longer_share": 0.7},
            "prism": {"seen_users": 0.9, "train_dialogues": 0.9},
            "pairs_per_user": 6,
            "label_noise": 0.0,
            "max_users": None,
            "max_rows": None,
        }
        mapping = COLUMNS | changes.pop("columns", {})
        return DataParams.model_validate(section | {"columns": mapping} | changes)

    return make


@pytest.fixture
def rules() -> Callable[..., ValidateParams]:
    """A `validate` section, with changes."""

    def make(**changes: Any) -> ValidateParams:
        section = {
            "min_users": 2,
            "keep_ids": [],
            "min_pairs_per_user": 2,
            "max_prompt_chars": 2000,
            "max_response_chars": 1000,
            "max_quarantined": 0.5,
            "max_majority_share": 0.98,
        }
        return ValidateParams.model_validate(section | changes)

    return make


@pytest.fixture
def shares() -> Callable[..., SplitParams]:
    """A `split` section, with changes."""

    def make(**changes: Any) -> SplitParams:
        section = {"by": "unit", "validation": 0.2, "test": 0.2, "unseen_users": 0.2}
        return SplitParams.model_validate(section | changes)

    return make


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pairs() -> Callable[..., list[dict[str, Any]]]:
    """Judgements of `users` users on `prompts` prompts each: distinct, and without a fault."""

    def make(users: int = 5, prompts: int = 10) -> list[dict[str, Any]]:
        return [
            {
                "user_id": f"user{user}",
                "prompt": f"Question {prompt}?",
                "chosen": f"answer {prompt}" + " more" * (user % 2),
                "rejected": f"reply {prompt}" + " more" * (1 - user % 2),
            }
            for user in range(users)
            for prompt in range(prompts)
        ]

    return make


@pytest.fixture
def write_lines() -> Callable[[Path, list[Any]], Path]:
    """Write JSON Lines; values that are text already are written as they are."""

    def write(path: Path, records: list[Any]) -> Path:
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        content = "".join(f"{line}\n" for line in lines).encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        return path

    return write


@pytest.fixture
def seed_root(work: Path, write_lines: Callable[[Path, list[Any]], Path]) -> Path:
    """`data/seed` with responses for both built-in data sets: 12 prompts, two of each kind."""

    def response(prompt: int, instruction: str, text: str) -> dict[str, Any]:
        return {
            "prompt_id": prompt,
            "prompt": f"Question {prompt}?",
            "instruction": instruction,
            "response": text,
            "tokens": len(text.split()),
        }

    lengths = {"short": (3, 5), "long": (7, 12)}
    write_lines(
        work / "data/seed/length/responses.jsonl.gz",
        [
            response(prompt, kind, " ".join([f"{kind}{prompt}"] * count))
            for prompt in range(12)
            for kind, counts in lengths.items()
            for count in counts
        ],
    )
    styles = ("simple", "expert", "concise", "thorough", "warm", "curt")
    write_lines(
        work / "data/seed/style/responses.jsonl.gz",
        [
            response(prompt, kind, f"A {kind} answer to {prompt}, number {number}.")
            for prompt in range(12)
            for kind in styles
            for number in range(2)
        ],
    )
    return work / "data/seed"

"""A directory in which the stage `train` can run on a tiny model, in seconds."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from personal import START
from preferences import optimizer_params, train_params
from prlhf.data import index_users
from prlhf.data.prompts import canonical_prompt
from prlhf.data.reference import LOGPS, SET_ASIDE, SET_ASIDE_COLUMNS, text_key
from prlhf.infra.io import write_json, write_parquet
from prlhf.models.pretrained import Pretrained
from prlhf.params import MethodParams, ModelParams, RewardTrainParams, TokenizerParams, TokenParams
from prlhf.stages import train as stage
from prlhf.stages import train_reward_model as reward_stage

SOURCE = {
    "kind": "package",
    "name": "tiny",
    "hub_id": "org/Tiny",
    "license": "Apache-2.0",
    "package": "tiny-llm==1.0",
    "sha256": "00",
}
USERS = ["ann", "ben", "cyd"]
LIKED = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0], [3.0, 0.0]])
"""Logits over two clusters, row 0 the generic user's."""
RESPONSES = ("Because.", "No idea at all", "So it is", "Ask me", "Yes", "It depends on it")


def lay_out(
    root: Path,
    tiny: Path,
    users: Sequence[str],
    *,
    weights: Tensor | None = None,
    personal: bool = True,
    source: str = "builtin",
) -> None:
    """Write what the stage reads: base model, prepared pairs, reference, pretrained users.

    Args:
        root: the project directory, which may hold an earlier layout.
        tiny: a model directory.
        users: ids of the seen users; their groups are the first letters.
        weights: what the pretraining found, float32 [N + 1, K].
        personal: whether it found something to gain.
        source: `data.source`.
    """
    if not (root / "models/base").exists():
        shutil.copytree(tiny, root / "models/base")
        write_json(root / "models/base/prlhf_source.json", SOURCE)
    prepared = root / "data/prepared"
    index = index_users(users)
    rows = [
        (user, index[user], canonical_prompt(f"{why}, {turn}?"), chosen, rejected)
        for turn, why in enumerate(("Why", "How", "When"))
        for at, user in enumerate(users)
        for chosen, rejected in [(RESPONSES[(at + turn) % 6], RESPONSES[(at + turn + 3) % 6])]
    ]
    table = pd.DataFrame(rows, columns=["user_id", "user_index", "prompt", "chosen", "rejected"])
    table = table.assign(user_text=None, weight=1.0)
    write_parquet(prepared / "train.parquet", table)
    write_parquet(prepared / "validation.parquet", table.head(len(users)))
    groups = [user[0] for user in users]
    everyone = pd.DataFrame({"user_id": list(users), "user_index": list(index.values())})
    everyone = everyone.assign(group=groups, user_text=None, seen=True, few=False)
    write_parquet(prepared / "users.parquet", everyone)
    write_json(prepared / "dataset.json", {"name": "org/choices", "source": source})
    keys = sorted(
        {text_key(p, r) for p in table["prompt"] for r in (*table["chosen"], *table["rejected"])}
    )
    logps = pd.DataFrame({"text": keys, "logp": -40.0})
    write_parquet(root / "data/reference" / LOGPS, logps)
    nothing = pd.DataFrame(columns=list(SET_ASIDE_COLUMNS))
    write_parquet(root / "data/reference" / SET_ASIDE, nothing)
    known = root / "models/user_model"
    shutil.rmtree(known, ignore_errors=True)
    known.mkdir(parents=True)
    pairs = torch.tensor([0.0] + [3.0] * len(users))
    Pretrained(list(users), START, pairs, weights, personal=personal).save(known)


def train(
    name: str,
    kind: str,
    start_from: str = "models/base",
    trust_pairs: int | None = None,
    **optimizer: Any,
) -> Path:
    """Run the stage in the current directory; the directory of the model."""
    objective = train_params(start_from=start_from, trust_pairs=trust_pairs)
    stage.run(train=objective, **_sections(name, kind, optimizer))
    return Path("models") / name


def train_reward(name: str, kind: str, **optimizer: Any) -> Path:
    """Run the stage `train_reward_model` in the current directory; the directory of the model."""
    objective = RewardTrainParams(pairs="train", alpha=0.5)
    reward_stage.run(train_reward_model=objective, **_sections(name, kind, optimizer))
    return Path("models") / f"reward_{name}"


def _sections(name: str, kind: str, optimizer: dict[str, Any]) -> dict[str, Any]:
    """What both stages read."""
    options = {"micro_batch_size": 2, "batch_size": 2, "eval_every": 1.0, **optimizer}
    own = TokenizerParams(name=None, revision=None, chat_template=None, date="2025-01-01")
    return {
        "seed": 3,
        "model": ModelParams(name="tiny", revision=None, tokenizer=own, dtype="float32"),
        "tokens": TokenParams(
            max_prompt=64, max_response=32, max_user_text=32, reference_text=False
        ),
        "optimizer": optimizer_params(**options),
        "method": MethodParams(kind=kind, text=False),
        "name": name,
    }


def hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }

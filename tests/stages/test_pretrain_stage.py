"""The stage `pretrain_user_model`: what it says of the data, and what training starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from personal import START
from prlhf.data.prompts import canonical_prompt
from prlhf.data.reference import (
    SET_ASIDE,
    SET_ASIDE_COLUMNS,
    Scored,
    save_reference,
    text_key,
)
from prlhf.infra.io import read_json, read_parquet, write_json, write_parquet
from prlhf.models.pretrained import load_pretrained
from prlhf.params import (
    MethodParams,
    ModelParams,
    PretrainParams,
    TokenizerParams,
    TokenParams,
    UserModelParams,
)
from prlhf.stages import pretrain_user_model as stage

GROUPS = [1, 1, -1, 1, -1, 1, 1, -1]
USERS = [f"user {i}" for i in range(len(GROUPS))]
PROMPTS = 24


def lay_out(root: Path, tastes: list[int], *, few: tuple[str, ...] = ()) -> None:
    """Users who like the first of six features of a response, or dislike it; a few have 2 pairs."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2 * PROMPTS, 6, generator=generator)
    prompts = [canonical_prompt(f"Question {i}?") for i in range(PROMPTS)]
    rows = []
    for index, (user, taste) in enumerate(zip(USERS, tastes, strict=True), 1):
        for i, prompt in enumerate(prompts[: 2 if user in few else PROMPTS]):
            better = bool(taste * (features[2 * i, 0] - features[2 * i + 1, 0]) > 0)
            chosen, rejected = ("one", "other") if better else ("other", "one")
            rows.append((user, index, prompt, chosen, rejected, f"unit {i}"))
    names = ["user_id", "user_index", "prompt", "chosen", "rejected", "unit"]
    train = pd.DataFrame(rows, columns=names).assign(weight=1.0, user_text=None)
    write_parquet(root / "data/prepared/train.parquet", train)
    users = pd.DataFrame({"user_id": USERS, "user_index": range(1, len(USERS) + 1), "seen": True})
    users = users.assign(few=users["user_id"].isin(few), group=None)
    write_parquet(root / "data/prepared/users.parquet", users)
    keys = [text_key(prompt, text) for prompt in prompts for text in ("one", "other")]
    directory = root / "data/reference"
    directory.mkdir(parents=True)
    scored = Scored(keys, torch.full((len(keys),), -9.0), features.half())
    save_reference(directory, [scored], texts=len(keys), width=6)
    write_parquet(directory / SET_ASIDE, pd.DataFrame(columns=list(SET_ASIDE_COLUMNS)))
    write_json(root / "models/base/prlhf_source.json", {"kind": "package", "name": "tiny"})


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pretrain(method: str = "reward", clusters: int | str = 2) -> dict[str, Any]:
    """Run the stage; `reports/pretrain.json`."""
    section = PretrainParams.model_validate(
        {
            "method": method,
            "soft_prompt_alpha": 0.5,
            "dimensions": 3,
            "strength": 0.7,
            "rank": 6,
            "max_pairs": 10_000,
            "folds": 4,
            "soft_prompt_steps": 1,
            "soft_prompt_lr": 0.01,
            "soft_prompt_beta": 0.5,
            "soft_prompt_batch_size": 2,
        }
    )
    sizes = {key: value for key, value in START.items() if key != "seed"}
    own = TokenizerParams(name=None, revision=None, chat_template=None, date="2025-01-01")
    stage.run(
        seed=1,
        model=ModelParams(name="tiny", revision=None, tokenizer=own, dtype="float32"),
        tokens=TokenParams(max_prompt=64, max_response=32, max_user_text=32, reference_text=False),
        user_model=UserModelParams.model_validate(
            sizes | {"clusters": clusters, "max_clusters": 3}
        ),
        pretrain=section,
        methods={"pdpo": MethodParams(kind="cluster", text=False)},
        trained=["pdpo"],
    )
    found: dict[str, Any] = read_json(Path("reports/pretrain.json"))
    return found


def test_users_who_differ(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(project, GROUPS)
    report = pretrain()
    gain = report["gain"]
    assert gain["personal"] is True
    assert gain["accuracy"]["personal"] > 0.85
    assert gain["accuracy"]["shared"] < 0.75
    assert abs(gain["shuffled"]["log_loss"]["difference"]) < gain["log_loss"]["difference"] / 4
    kinds = {(report["assignments"][u], taste) for u, taste in zip(USERS, GROUPS, strict=True)}
    assert len(kinds) == report["clusters"] == 2
    known = load_pretrained(Path("models/user_model"))
    assert known.personal
    assert known.weights is not None
    assert known.weights.shape == (9, 2)
    assert known.pairs.tolist() == [0.0, *[24.0] * 8]
    said = capsys.readouterr().err
    assert "users are mixtures of 2 kinds; 0.8" in said
    assert "with users shuffled" in said


def test_pairs_that_are_set_aside_teach_nothing(project: Path) -> None:
    """Not even of a user who has no others left."""
    lay_out(project, GROUPS)
    train = read_parquet("data/prepared/train.parquet")
    train["pair_id"] = [f"pair {i}" for i in range(len(train))]
    write_parquet("data/prepared/train.parquet", train)
    one, other = train["user_id"] == USERS[0], train["user_id"] == USERS[1]
    aside = pd.concat([train[one], train[other][:10]]).assign(split="train", row=1, reason="equal")
    aside = aside.assign(max_response=9)[list(SET_ASIDE_COLUMNS)]
    write_parquet("data/reference/set_aside.parquet", aside)
    assert pretrain()["gain"]["personal"] is True
    known = load_pretrained(Path("models/user_model"))
    assert known.pairs.tolist() == [0.0, 0.0, 14.0, *[24.0] * 6]
    assert known.weights is not None
    assert known.weights.isfinite().all()


def test_users_who_agree(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(project, [1] * len(GROUPS))
    assert pretrain()["gain"]["personal"] is False
    known = load_pretrained(Path("models/user_model"))
    assert not known.personal
    assert known.weights is not None
    assert torch.equal(known.weights, known.weights[:1].expand_as(known.weights))
    assert "all are served as the generic user" in capsys.readouterr().err


def test_users_with_few_pairs_are_placed_and_not_trained(project: Path) -> None:
    lay_out(project, GROUPS, few=("user 2", "user 3"))
    report = pretrain()
    known = load_pretrained(Path("models/user_model"))
    assert known.pairs[1:].tolist() == [24.0, 24.0, 0.0, 0.0, 24.0, 24.0, 24.0, 24.0]
    # Where their two choices put them: among those of their taste, but not as far out.
    assert known.weights is not None
    others = report["assignments"]
    ahead = (known.weights[:, 0] - known.weights[:, 1]).tolist()
    for index, like in ((3, "user 4"), (4, "user 0")):
        sign = 1 if others[like] == 0 else -1
        assert 0 < sign * ahead[index] < sign * ahead[USERS.index(like) + 1]


def test_without_pretraining_nothing_is_known(project: Path) -> None:
    lay_out(project, GROUPS)
    assert pretrain("none", "auto") == {"method": "none"}
    known = load_pretrained(Path("models/user_model"))
    assert known.personal
    assert known.weights is None
    assert known.options["clusters"] == 1

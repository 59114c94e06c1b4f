"""One adapter for each known group: trained on its own pairs, and switched on for its own users."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from personal import START
from preferences import sections, some_pairs
from prlhf.data import GENERIC
from prlhf.data.prompts import canonical_prompt
from prlhf.generation import complete
from prlhf.infra.errors import UserError
from prlhf.models.base import BaseModel, Encoder, load_base
from prlhf.models.packing import Row
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.pretrained import Pretrained
from prlhf.models.user_model import GroupUserModel, UniformUserModel
from prlhf.params.training import LoraParams
from prlhf.sampling import decoding
from prlhf.training.finetune import (
    Run,
    account,
    build_model,
    fit,
    known_groups,
    mean_curves,
    train_groups,
)
from prlhf.training.trainer import PDPOTrainer

PAIRS = {"train": some_pairs(9), "validation": some_pairs(6, seed=1)}
LORA = LoraParams(r=2, alpha=4.0, dropout=0.0, targets="auto")


def fresh(base: BaseModel) -> PersonalizedLM:
    encoder = Encoder(base.chat, 64, 32)
    uniform = UniformUserModel(["ann", "bob", "cyd"], 0, base.hidden_size)
    return build_model(base, uniform, encoder, LORA, seed=3, about={})


def trainer(checkpoints: Path) -> Any:
    def run(lm, pairs, part="", group="") -> Run:
        params = sections(epochs=4.0, batch_size=1, micro_batch_size=1, lora_lr=0.05)
        options = {"checkpoints": checkpoints / part, "seed": 5, "label": group}
        return fit(PDPOTrainer, lm, *params, pairs, **options)

    return run


def start(base: BaseModel, groups: list[str | None]) -> GroupUserModel:
    ids = ["ann", "bob", "cyd", "dan"][: len(groups)]
    table = pd.DataFrame({"user_id": ids, "user_index": range(1, len(ids) + 1), "group": groups})
    # Someone who was held out of training, and the seen users in any order.
    unseen = pd.DataFrame({"user_id": ["zoe"], "user_index": [GENERIC], "group": ["other"]})
    users = pd.concat([unseen.assign(seen=False), table[::-1].assign(seen=True)])
    pretrained = Pretrained(ids, START, torch.ones(len(ids) + 1))
    model = pretrained.initial("group", base, groups=known_groups(users))
    assert isinstance(model, GroupUserModel)
    return model


@pytest.fixture
def tree(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRLHF_DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/dpo_groups").mkdir(parents=True)
    (tmp_path / "models/base").symlink_to(tiny_path)
    return tmp_path


def train(tree: Path) -> tuple[PersonalizedLM, list[Run]]:
    base = load_base(Path("models/base"), "float32")
    groups = start(base, ["short", "long", "short"])
    lm, runs = train_groups(
        groups,
        PAIRS,
        fresh=lambda group: fresh(base),
        train=trainer(tree / "checkpoints"),
        directory=Path("models/dpo_groups"),
    )
    lm.save_pretrained(Path("models/dpo_groups"))
    return lm, runs


def logps(lm: PersonalizedLM, users: list[int]) -> Tensor:
    rows = [Row(user, [5, 6, 7 + i], [[8, 9, 1], [10, 1]]) for i, user in enumerate(users)]
    return lm.score(rows, label="test").logps.view(-1, 2)


def test_each_group_is_served_by_what_training_on_its_own_pairs_gives(tree: Path) -> None:
    lm, _ = train(tree)
    # Users 1 and 3 are of the larger group, which serves the generic user as well.
    mixed = logps(lm, [1, 2, 3, GENERIC])
    for group, members in (("short", [1, 3]), ("long", [2])):
        alone = fresh(load_base(Path("models/base"), "float32"))
        theirs = [pair for pair in PAIRS["train"] if pair.user_index in members]
        trainer(tree / f"alone-{group}")(alone, {"train": theirs, "validation": []})
        expected = logps(alone, [GENERIC] * 4)
        rows = [0, 2, 3] if group == "short" else [1]
        torch.testing.assert_close(mixed[rows], expected[rows], rtol=1e-5, atol=1e-5)
        others = [1] if group == "short" else [0, 2, 3]
        assert (mixed[others] - expected[others]).abs().max() > 0.05


def test_a_round_trip_is_bit_identical(tree: Path) -> None:
    lm, _ = train(tree)
    loaded = PersonalizedLM.from_pretrained("models/dpo_groups")
    assert isinstance(loaded.user_model, GroupUserModel)
    assert loaded.user_model.groups == ["short", "long"]
    assert loaded.user_model.index("bob") == 2
    users = [2, 1, GENERIC, 3, 2]
    assert torch.equal(logps(loaded, users), logps(lm, users))
    assert loaded.personalized
    assert not any(p.requires_grad for p in loaded.parameters())


def test_answers_of_a_mixed_batch_are_those_of_each_group_alone(tree: Path) -> None:
    lm, _ = train(tree)
    greedy = decoding(lm.encoder.chat.conventions.stops, max_new_tokens=8, temperature=0)
    requests = [(user, canonical_prompt("Why?")) for user in (1, 2, 3, GENERIC)]
    mixed = complete(lm, requests, config=greedy)
    alone = [complete(lm, [request], config=greedy)[0] for request in requests]
    assert mixed == alone
    assert mixed[0] == mixed[2] == mixed[3] != mixed[1]


def test_a_missing_adapter_is_named(tree: Path) -> None:
    train(tree)
    (Path("models/dpo_groups/group_1/adapter_config.json")).unlink()
    with pytest.raises(UserError, match="no adapter here") as raised:
        PersonalizedLM.from_pretrained("models/dpo_groups")
    assert "dpo_groups/group_1" in str(raised.value)


def test_a_finished_group_is_not_trained_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complete, runs = train(tree)
    kept = copy.deepcopy(logps(complete, [1, 2, 3]))
    asked: list[int] = []
    forward = PersonalizedLM.forward

    def counting(self: PersonalizedLM, *args: Any, **options: Any) -> Any:
        asked.append(1)
        return forward(self, *args, **options)

    monkeypatch.setattr(PersonalizedLM, "forward", counting)
    again, same = train(tree)
    assert not asked
    for one, other in zip(runs, same, strict=True):
        pd.testing.assert_frame_equal(one.curves, other.curves)
    assert account(same) == account(runs)
    assert account(runs)["pairs"] == {"all": 9, "seen": 9}
    assert account(runs)["users"] == {"all": 3, "seen": 3}
    assert [run["plan"]["steps"] for run in account(runs)["runs"]] == [24, 12]
    assert torch.equal(logps(again, [1, 2, 3]), kept)


def test_users_of_no_group_count_to_the_largest(
    tiny_base: BaseModel, capsys: pytest.CaptureFixture[str]
) -> None:
    model = start(tiny_base, ["b", None, "a", "a"])
    assert model.groups == ["a", "b"]
    assert model.members.tolist() == [0, 1, 0, 0, 0]
    assert "1 users of no group" in capsys.readouterr().err
    assert [model.adapter(user) for user in range(3)] == ["group_0", "group_1", "group_0"]


def test_without_groups_there_is_one_line(tiny_base: BaseModel) -> None:
    with pytest.raises(UserError, match="no user of this data set has one") as raised:
        start(tiny_base, [None, None])
    assert "params.yaml: methods" in str(raised.value)


def test_curves_are_averaged_over_the_groups_that_got_so_far() -> None:
    one = pd.DataFrame({"step": [1, 2], "split": "train", "loss": [4.0, 2.0]})
    other = pd.DataFrame({"step": [1], "split": "train", "loss": [1.0]})
    mean = mean_curves([one, other])
    assert mean["loss"].tolist() == [2.5, 2.0]
    assert list(mean.columns) == ["step", "split", "loss"]

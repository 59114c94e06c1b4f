"""User-model pretraining: planted groups are found, and training starts from them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from personal import TOKENS, USERS, personalise
from preferences import mirrored, some_pairs
from prlhf.models.base import BaseModel, opening_tokens
from prlhf.models.user_model import (
    ClusterUserModel,
    IndividualUserModel,
    Pretrained,
    UniformUserModel,
    load_pretrained,
)
from prlhf.params import PretrainParams
from prlhf.rewards.features import (
    Examples,
    FeatureReward,
    _cluster,
    evaluate_feature_reward,
    fit_feature_reward,
)
from prlhf.training.dataset import PreferenceExample
from prlhf.training.finetune import train_soft_prompts
from tiny import tiny_tokenizer

OPTIONS: dict[str, Any] = {
    "alpha": 0.5,
    "rank": 6,
    "steps": 60,
    "lr": 0.05,
    "l2": 0.001,
    "clusters": None,
    "max_clusters": 4,
    "generic_pull": 0.01,
}
Fitted = tuple[FeatureReward, dict[str, Any]]


def planted(users: Mapping[int, int], pairs: int = 40, *, noise: float = 0.3, seed: int = 0):
    """Pairs of users (index: sign) who like the first of six features, or the opposite."""
    generator = torch.Generator().manual_seed(seed)
    differences, indices = [], []
    for user, sign in users.items():
        d = torch.randn(pairs, 6, generator=generator)
        liked = sign * d[:, 0] + noise * torch.randn(pairs, generator=generator)
        differences.append(torch.where(liked[:, None] > 0, d, -d))
        indices += [user] * pairs
    return Examples(torch.cat(differences), torch.tensor(indices))


# Seven against three, the minority first.
GROUPS = {1: -1, 2: 1, 3: 1, 4: -1, 5: 1, 6: 1, 7: 1, 8: -1, 9: 1, 10: 1}


@pytest.fixture(scope="module")
def found() -> Fitted:
    train, validation = planted(GROUPS), planted(GROUPS, 20, seed=1)
    return fit_feature_reward(train, validation, len(GROUPS), **OPTIONS, seed=0)


@pytest.fixture(scope="module")
def fitted(found: Fitted) -> FeatureReward:
    return found[0]


def test_two_planted_groups_are_found(found: Fitted) -> None:
    fitted, report = found
    assert fitted.clusters == 2
    assert report["clusters"] == 2
    # Numbered by size: the majority is 0.
    assert fitted.assignments.tolist() == [0 if sign > 0 else 1 for sign in GROUPS.values()]


def test_knowing_the_user_pays(found: Fitted) -> None:
    _, report = found
    accuracy = report["accuracy"]
    assert accuracy["personalised"] > 0.85
    assert 0.5 < accuracy["generic"] < 0.75
    assert set(report["tried"]) == {"1", "2", "3", "4"}
    assert report["pairs"] == {"train": 400, "validation": 200}


def test_one_group_is_enough_where_all_agree() -> None:
    same = dict.fromkeys(range(1, 7), 1)
    model, report = fit_feature_reward(
        planted(same), planted(same, 20, seed=1), 6, **OPTIONS, seed=0
    )
    assert model.clusters == 1
    accuracy = report["accuracy"]
    assert accuracy["personalised"] == accuracy["generic"] > 0.85


def test_the_number_of_clusters_can_be_given() -> None:
    options = OPTIONS | {"clusters": 3}
    model, report = fit_feature_reward(
        planted(GROUPS), planted(GROUPS, 20, seed=1), 10, **options, seed=0
    )
    assert model.clusters == 3
    assert set(report["tried"]) == {"3"}
    few = {1: 1, 2: -1}
    model, _ = fit_feature_reward(planted(few), planted(few, 5, seed=1), 2, **options, seed=0)
    assert model.clusters == 2  # never more than users


def test_without_validation_pairs_the_training_pairs_are_watched() -> None:
    train = planted(GROUPS)
    nothing = Examples(train.differences[:0], train.users[:0])
    _, report = fit_feature_reward(train, nothing, 10, **OPTIONS, seed=0)
    assert report["accuracy"]["personalised"] > 0.85
    assert np.isfinite([v for t in report["tried"].values() for v in t.values()]).all()


def test_the_seed_decides() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    one, report = fit_feature_reward(
        planted(GROUPS), planted(GROUPS, 9, seed=1), 10, **OPTIONS, seed=3
    )
    torch.manual_seed(2)
    np.random.seed(2)
    two, other = fit_feature_reward(
        planted(GROUPS), planted(GROUPS, 9, seed=1), 10, **OPTIONS, seed=3
    )
    assert torch.equal(one.weights, two.weights)
    assert torch.equal(one.directions, two.directions)
    assert report == other


def test_a_user_without_training_pairs() -> None:
    users = {user: sign for user, sign in GROUPS.items() if user != 5}
    model, _ = fit_feature_reward(planted(users), planted(users, 9, seed=1), 10, **OPTIONS, seed=0)
    assert torch.isfinite(model.weights).all()
    assert len(model.assignments) == 10


def test_features_of_any_scale(fitted: FeatureReward) -> None:
    """Features are standardised; constant and huge ones do no harm."""
    scale = torch.tensor([1e3, 1.0, 1e-3, 0.0, 1.0, 1.0])

    def scaled(examples: Examples) -> Examples:
        return Examples(examples.differences * scale, examples.users)

    model, _ = fit_feature_reward(
        scaled(planted(GROUPS)), scaled(planted(GROUPS, 20, seed=1)), 10, **OPTIONS, seed=0
    )
    assert model.clusters == 2
    assert model.assignments.tolist() == fitted.assignments.tolist()


def test_reward_differences_are_those_of_the_definition(fitted: FeatureReward) -> None:
    """r(x, y, u) = z(x, y) . sum_k softmax(w_u)_k v_k, linear in the features."""
    examples = planted(GROUPS, 2, seed=5)
    users = torch.tensor([0, 3, 4] * 6 + [0, 1])
    got = fitted(examples.differences, users)
    for i, user in enumerate(users.tolist()):
        mixture = torch.softmax(fitted.weights[user].double(), 0)
        direction = sum(w * v.double() for w, v in zip(mixture, fitted.directions, strict=True))
        z = examples.differences[i].double() @ fitted.projection.double()
        assert got[i].item() == pytest.approx((z @ direction).item(), rel=1e-4, abs=1e-5)


def test_evaluation_by_hand() -> None:
    model = FeatureReward(
        projection=torch.eye(1),
        directions=torch.tensor([[1.0], [-1.0]]),
        weights=torch.tensor([[50.0, 0.0], [50.0, 0.0], [0.0, 50.0]]),
    )
    examples = Examples(torch.tensor([[2.0], [-1.0], [0.0]]), torch.tensor([1, 2, 1]))
    got = evaluate_feature_reward(model, examples)
    # rewards as users: 2, 1, 0 (a tie); as the generic user: 2, -1, 0
    assert got["accuracy_user"] == pytest.approx(2.5 / 3)
    assert got["accuracy_generic"] == pytest.approx(1.5 / 3)
    losses = np.log1p(np.exp([-2.0, -1.0, 0.0]))
    assert got["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert got["loss_se"] == pytest.approx(losses.std() / 3**0.5, rel=1e-5)


@given(st.integers(0, 50))
def test_clusters_are_numbered_by_size(seed: int) -> None:
    points = torch.tensor([[0.0], [5.0], [5.1], [9.0], [9.1], [9.2]])
    assert _cluster(points, 3, seed).unique().numel() <= 3
    labels = _cluster(points, 3, 0).tolist()
    assert labels == [2, 1, 1, 0, 0, 0]


# -- the start of training ---------------------------------------------------------------------

START: dict[str, Any] = {
    "tokens": TOKENS,
    "clusters": 2,
    "init_scale": 0.7,
    "generic_pull": 0.1,
    "offset_penalty": 0.2,
    "seed": 3,
}
WEIGHTS = torch.tensor([[0.5, 0.0], [3.0, 0.0], [0.0, 3.0], [3.0, 0.0]])


def start(kind: str, base: BaseModel, weights: Tensor | None = WEIGHTS, **changes: Any):
    return Pretrained(USERS, {**START, **changes}, weights).initial(kind, base)


def opening(base: BaseModel) -> Tensor:
    table = base.model.get_input_embeddings().weight
    return table[opening_tokens(base.tokenizer, TOKENS)].detach()


def test_the_generic_user_starts_neutral(tiny_base: BaseModel) -> None:
    model = start("individual", tiny_base)
    assert isinstance(model, IndividualUserModel)
    torch.testing.assert_close(model(torch.tensor([0]))[0], opening(tiny_base))
    assert (model.offsets.weight[0] == 0).all()
    assert model.offset_penalty == 0.2


def test_users_of_one_group_start_alike_and_groups_differ(tiny_base: BaseModel) -> None:
    for kind in ("individual", "cluster"):
        embeddings = start(kind, tiny_base)(torch.tensor([0, 1, 2, 3])).detach()
        torch.testing.assert_close(embeddings[1], embeddings[3])
        assert (embeddings[1] - embeddings[2]).abs().max() > 1e-2


def test_both_kinds_start_with_the_same_differences(tiny_base: BaseModel) -> None:
    """e_u - e_0 = (softmax(w_u) - softmax(w_0)) . directions, whatever the kind."""
    users = torch.tensor([0, 1, 2, 3])
    one, other = (start(kind, tiny_base)(users).detach() for kind in ("individual", "cluster"))
    torch.testing.assert_close(one - one[0], other - other[0], rtol=1e-4, atol=1e-6)


def test_cluster_models_take_over_the_pretrained_weights(tiny_base: BaseModel) -> None:
    model = start("cluster", tiny_base)
    assert isinstance(model, ClusterUserModel)
    assert torch.equal(model.weights.weight[1:], WEIGHTS[1:])
    assert torch.equal(model.generic_weights, WEIGHTS[0])
    assert (model.weights.weight[0] == 0).all()
    assert model.generic_pull == 0.1
    # Centres differ, or they could never move apart.
    assert (model.centres[0] - model.centres[1]).abs().min() > 0


def test_without_pretraining_everybody_starts_as_the_generic_user(tiny_base: BaseModel) -> None:
    for kind in ("individual", "cluster"):
        model = start(kind, tiny_base, None, clusters=3)
        embeddings = model(torch.tensor([0, 1, 2, 3])).detach()
        torch.testing.assert_close(embeddings, embeddings[:1].expand_as(embeddings))
        if kind == "cluster":
            assert model.clusters == 3


def test_the_scale_of_the_groups(tiny_base: BaseModel) -> None:
    """A direction's entries have `init_scale` standard deviations of the embedding table."""
    table = tiny_base.model.get_input_embeddings().weight
    model = start("cluster", tiny_base, tokens=200)
    directions = model.centres.detach() - table[opening_tokens(tiny_base.tokenizer, 200)].detach()
    assert directions.std().item() == pytest.approx(0.7 * table.std().item(), rel=0.05)
    still = start("cluster", tiny_base, init_scale=0.0)
    assert torch.equal(still.centres[0], still.centres[1])


def test_the_start_depends_on_the_seed_alone(tiny_base: BaseModel) -> None:
    torch.manual_seed(1)
    one = start("individual", tiny_base)
    torch.manual_seed(2)
    two = start("individual", tiny_base)
    other = start("individual", tiny_base, seed=4)
    assert torch.equal(one.offsets.weight, two.offsets.weight)
    assert not torch.equal(one.offsets.weight, other.offsets.weight)


def test_a_uniform_model_has_nothing_to_start_from(tiny_base: BaseModel) -> None:
    model = start("uniform", tiny_base)
    assert isinstance(model, UniformUserModel)
    assert model.users == USERS


def test_opening_tokens_are_what_every_prompt_starts_with(tiny_base: BaseModel) -> None:
    header = tiny_base.tokenizer("<|start|>user\n", add_special_tokens=False)["input_ids"]
    assert opening_tokens(tiny_base.tokenizer, 3) == header[:3]
    assert opening_tokens(tiny_base.tokenizer, len(header) + 2) == [*header, *header[:2]]


def test_opening_tokens_without_a_template(tiny_base: BaseModel) -> None:
    plain = replace(tiny_base, tokenizer=tiny_tokenizer(chat=False))
    assert opening_tokens(plain.tokenizer, 3) == [0, 0, 0]
    plain.tokenizer.bos_token = None
    assert opening_tokens(plain.tokenizer, 2) == [1, 1]


# -- soft prompts ------------------------------------------------------------------------------


def opposed_pairs() -> list[PreferenceExample]:
    """Two users who disagree about the very same pairs."""
    return [one for pair in some_pairs(3, users=1) for one in (pair, mirrored(pair, user_index=2))]


def soft(lm, *, steps: int = 6, seed: int = 0, pairs=None) -> list[float]:
    pretrain = PretrainParams(
        method="soft_prompt",
        alpha=0.5,
        rank=6,
        steps=60,
        lr=0.05,
        l2=0.001,
        soft_prompt_steps=steps,
        soft_prompt_lr=0.05,
        soft_prompt_beta=0.3,
        soft_prompt_batch_size=4,
    )
    return train_soft_prompts(lm, pairs or opposed_pairs(), pretrain, seed=seed, label="test")


@pytest.mark.parametrize("kind", ["individual", "cluster"])
def test_soft_prompts_train_the_user_model_only(tiny_base: BaseModel, kind: str) -> None:
    lm = personalise(tiny_base, kind, lora=False)
    before = {name: p.detach().clone() for name, p in lm.named_parameters()}
    losses = soft(lm, steps=12)
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    for name, parameter in lm.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert changed == name.startswith("user_model."), name
    table = lm.user_model.sparse_parameters()[0]
    old = before[
        "user_model.offsets.weight" if kind == "individual" else "user_model.weights.weight"
    ]
    assert torch.equal(table[3], old[3])  # user 3 has no pairs
    assert not torch.equal(table[1], old[1])


def test_soft_prompts_depend_on_the_seed_alone(tiny_base: BaseModel) -> None:
    start = personalise(tiny_base, lora=False)
    torch.manual_seed(1)
    one = soft(copy.deepcopy(start), steps=3, seed=5)
    torch.manual_seed(2)
    assert soft(copy.deepcopy(start), steps=3, seed=5) == one
    assert soft(copy.deepcopy(start), steps=3, seed=6) != one


def test_fewer_pairs_than_a_batch(tiny_base: BaseModel) -> None:
    lm = personalise(tiny_base, lora=False)
    assert len(soft(lm, steps=2, pairs=opposed_pairs()[:1])) == 2


# -- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [WEIGHTS, None])
def test_pretraining_survives_its_files(
    tiny_base: BaseModel, tmp_path: Path, weights: Tensor | None
) -> None:
    Pretrained(USERS, START, weights).save(tmp_path)
    loaded = load_pretrained(tmp_path)
    assert list(loaded.users) == USERS
    for kind in ("uniform", "individual", "cluster"):
        got = loaded.initial(kind, tiny_base)
        expected = start(kind, tiny_base, weights)
        assert got.config() == expected.config()
        for one, other in zip(got.parameters(), expected.parameters(), strict=True):
            assert torch.equal(one, other)


def test_trained_user_models_are_handed_on(tiny_base: BaseModel, tmp_path: Path) -> None:
    lm = personalise(tiny_base, "cluster", lora=False)
    (tmp_path / "other").mkdir()
    Pretrained(USERS, START, trained={"cluster": lm.user_model}).save(tmp_path)
    loaded = load_pretrained(tmp_path)
    users = torch.tensor([0, 1, 2, 3])
    assert torch.equal(loaded.initial("cluster", tiny_base)(users), lm.user_model(users))
    assert isinstance(loaded.initial("individual", tiny_base), IndividualUserModel)
    # What was trained without the users' texts is no start for a model that reads them.
    behind = loaded.initial("cluster", tiny_base, text=True)
    assert not torch.equal(behind(users), lm.user_model(users))
    Pretrained(USERS, START, trained={"cluster-text": lm.user_model}).save(tmp_path / "other")
    other = load_pretrained(tmp_path / "other")
    assert torch.equal(other.initial("cluster", tiny_base, text=True)(users), lm.user_model(users))

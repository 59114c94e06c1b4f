"""Users move to the generic user where held-out pairs are then predicted better."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import naive
from killed import until_it_ends
from personal import personalise
from preferences import mirrored, some_pairs, train_params
from prlhf.infra.kept import KeptWork
from prlhf.models.base import BaseModel, Encoder
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.user_model import UniformUserModel, build
from prlhf.training.dataset import PreferenceExample
from prlhf.training.trust import may_differ, settle_trust

TRAIN = train_params(alpha=0.5, beta=0.4, nll_coef=1.0)
PERSONAL = ["individual", "cluster"]


@pytest.mark.parametrize("kind", PERSONAL)
def test_trust_is_how_far_users_are_from_the_generic_user(tiny_base: BaseModel, kind: str) -> None:
    users = personalise(tiny_base, kind, lora=False).user_model
    everyone = torch.arange(4)
    full = users(everyone).detach()
    users.trust = 0.5
    torch.testing.assert_close(users(everyone).detach(), (full + full[:1]) / 2)
    assert users.tells_apart
    users.trust = 0.0
    none = users(everyone).detach()
    assert torch.equal(none, full[:1].expand_as(full)), "to the bit"
    assert not users.tells_apart
    assert build(users.users, users.config()).trust == 0.0
    users.trust = 1.0
    assert torch.equal(users(everyone).detach(), full)


def margins(lm: PersonalizedLM, pairs: list[PreferenceExample], trust: float) -> list[float]:
    """By the definitions, one pair at a time."""
    twin = naive.double(lm)
    embedding = naive.embedding_of(twin.user_model)
    found = []
    for pair in pairs:
        generic, own = embedding(0), embedding(pair.user_index)
        user = generic + trust * (own - generic)
        chosen, rejected = (
            naive.response_logp(twin.lm, user, pair.prompt, response).item()
            for response in (pair.chosen, pair.rejected)
        )
        found.append((chosen - pair.ref_chosen) - (rejected - pair.ref_rejected))
    return found


@pytest.mark.parametrize("kind", PERSONAL)
def test_the_loss_of_the_mean_user_decides(tiny_base: BaseModel, kind: str) -> None:
    lm = personalise(tiny_base, kind)
    # Three users with pairs of unequal weight.
    pairs = some_pairs(8, weights=True)
    got = settle_trust(lm, pairs, TRAIN, batch=3, label="test")
    trust = lm.user_model.trust
    lm.user_model.trust = 1.0
    users = np.array([pair.user_index for pair in pairs])
    weights = np.array([pair.weight for pair in pairs])
    for level, found in got["loss"].items():
        losses = np.log1p(np.exp(-0.4 * np.array(margins(lm, pairs, float(level)))))
        of_users = [np.average(losses[users == u], weights=weights[users == u]) for u in (1, 2, 3)]
        assert found == pytest.approx(np.mean(of_users), rel=1e-4)
    assert trust == got["trust"] == float(min(got["loss"], key=got["loss"].get))
    assert (got["users"], got["pairs"]) == (3, 8)


def test_it_goes_on_from_the_pairs_where_it_was_killed(
    tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, pairs = personalise(tiny_base), some_pairs(9, weights=True)
    calls: list[int] = []
    forward = lm.forward
    monkeypatch.setattr(
        lm, "forward", lambda *args, **kwargs: (calls.append(1), forward(*args, **kwargs))[1]
    )
    expected = settle_trust(lm, pairs, TRAIN, batch=2, label="test")
    total = len(calls)
    calls.clear()
    got, killed = until_it_ends(
        lambda pace: settle_trust(
            lm, pairs, TRAIN, batch=2, label="test", work=KeptWork(tmp_path, pace)
        ),
        looks=4,
    )
    assert got == expected
    assert killed > 2
    assert len(calls) == total


@pytest.mark.parametrize(("helpful", "trust"), [(True, 1.0), (False, 0.0)])
def test_users_are_trusted_where_it_helps(
    tiny_base: BaseModel, helpful: bool, trust: float
) -> None:
    """Pairs whose chosen response is the one that their user makes more probable, or less."""
    lm = personalise(tiny_base)
    neutral = [replace(pair, ref_chosen=0.0, ref_rejected=0.0) for pair in some_pairs(12)]
    own, generic = margins(lm, neutral, 1.0), margins(lm, neutral, 0.0)
    pairs = []
    for pair, here, there in zip(neutral, own, generic, strict=True):
        # The generic user is the reference.
        known = replace(pair, ref_chosen=there)
        pairs.append(known if (here > there) == helpful else mirrored(known, pair.user_index))
    got = settle_trust(lm, pairs, TRAIN, batch=4, label="test")
    assert got["trust"] == trust
    assert lm.personalized == helpful


def test_there_is_nobody_to_trust_in_a_model_that_tells_nobody_apart(tiny_base: BaseModel) -> None:
    lm = personalise(tiny_base, lora=False)
    assert may_differ(lm, 0.5)
    assert not may_differ(lm, 0.0)
    uniform = UniformUserModel(["ann"], 0, tiny_base.hidden_size)
    encoder = Encoder(tiny_base.chat, 64, 32)
    assert not may_differ(PersonalizedLM(tiny_base, tiny_base.model, uniform, encoder), 0.5)

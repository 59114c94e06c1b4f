"""What training starts from: who is where, at what distance, and whether anybody differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    PreTrainedModel,
)

from personal import START, TOKENS, USERS, personalise
from prlhf.models.base import BaseModel, Encoder
from prlhf.models.conventions import chat_tokenizer
from prlhf.models.packing import Row
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.pretrained import Pretrained, load_pretrained, opening_tokens, pairs_of
from prlhf.models.user_model import ClusterUserModel, IndividualUserModel, UniformUserModel
from prlhf.training.trainer import conditions
from tiny import tiny_tokenizer

WEIGHTS = torch.tensor([[0.5, 0.0], [3.0, 0.0], [0.0, 3.0], [3.0, 0.0]])
PAIRS = torch.tensor([0.0, 2.0, 4.0, 0.0])
EVERYONE = torch.tensor([0, 1, 2, 3])


def pretrained(weights: Tensor | None = WEIGHTS, *, personal: bool = True, **changes: Any):
    return Pretrained(USERS, {**START, **changes}, PAIRS, weights, personal=personal)


def start(kind: str, base: BaseModel, weights: Tensor | None = WEIGHTS, **changes: Any):
    return pretrained(weights, **changes).initial(kind, base)


def opening(base: BaseModel, tokens: int = TOKENS) -> Tensor:
    table = base.model.get_input_embeddings().weight
    return table[opening_tokens(base.chat, tokens)].detach()


def test_pairs_are_counted_by_weight() -> None:
    table = pd.DataFrame({"user_index": [2, 0, 2, 1], "weight": [1.0, 1.0, 0.5, 2.0]})
    assert pairs_of(table, 3).tolist() == [1.0, 2.0, 1.5, 0.0]


def test_the_generic_user_starts_neutral(tiny_base: BaseModel) -> None:
    model = start("individual", tiny_base)
    assert isinstance(model, IndividualUserModel)
    torch.testing.assert_close(model(torch.tensor([0]))[0], opening(tiny_base))
    assert (model.offsets.weight == 0).all()


def test_users_of_one_group_start_alike_and_groups_differ(tiny_base: BaseModel) -> None:
    for kind in ("individual", "cluster"):
        embeddings = start(kind, tiny_base)(EVERYONE).detach()
        torch.testing.assert_close(embeddings[1], embeddings[3])
        assert (embeddings[1] - embeddings[2]).abs().max() > 1e-2


def test_both_kinds_start_with_the_same_differences(tiny_base: BaseModel) -> None:
    """e_u - e_0 = (softmax(w_u) - softmax(w_0)) . directions, whatever the kind."""
    one, other = (start(kind, tiny_base)(EVERYONE).detach() for kind in ("individual", "cluster"))
    torch.testing.assert_close(one - one[0], other - other[0], rtol=1e-4, atol=1e-6)


def test_cluster_models_take_over_the_pretrained_weights(tiny_base: BaseModel) -> None:
    model = start("cluster", tiny_base)
    assert isinstance(model, ClusterUserModel)
    assert torch.equal(model.weights.weight[1:], WEIGHTS[1:])
    assert torch.equal(model.generic_weights, WEIGHTS[0])
    assert (model.weights.weight[0] == 0).all()
    # Centres differ, or they could never move apart.
    assert (model.centres[0] - model.centres[1]).abs().min() > 0


def test_without_pretraining_everybody_starts_as_the_generic_user(tiny_base: BaseModel) -> None:
    for kind in ("individual", "cluster"):
        model = start(kind, tiny_base, None, clusters=3)
        embeddings = model(EVERYONE).detach()
        torch.testing.assert_close(embeddings, embeddings[:1].expand_as(embeddings))
        assert model.clusters == 3


def test_the_scale_of_the_groups(tiny_base: BaseModel) -> None:
    """A direction's entries have `init_scale` standard deviations of the embedding table."""
    table = tiny_base.model.get_input_embeddings().weight
    assert tiny_base.embedding_std == pytest.approx(table.std().item(), rel=1e-5)
    model = start("cluster", tiny_base, tokens=200)
    directions = model.centres.detach() - opening(tiny_base, 200)
    assert directions.std().item() == pytest.approx(0.7 * table.std().item(), rel=0.05)
    still = start("cluster", tiny_base, init_scale=0.0)
    assert torch.equal(still.centres[0], still.centres[1])


def test_the_start_depends_on_the_seed_alone(tiny_base: BaseModel) -> None:
    torch.manual_seed(1)
    one = start("individual", tiny_base)
    torch.manual_seed(2)
    two = start("individual", tiny_base)
    other = start("individual", tiny_base, seed=4)
    assert torch.equal(one.directions, two.directions)
    assert not torch.equal(one.directions, other.directions)


def test_a_uniform_model_has_nothing_to_start_from(tiny_base: BaseModel) -> None:
    model = start("uniform", tiny_base)
    assert isinstance(model, UniformUserModel)
    assert model.users == USERS


# -- the prior -----------------------------------------------------------------------------------


def test_users_cost_nothing_where_they_start_and_once_what_they_moved(tiny_base: BaseModel) -> None:
    cluster = start("cluster", tiny_base, generic_pull=0.0)
    assert cluster.penalty(EVERYONE).tolist() == [0, 0, 0, 0]
    with torch.no_grad():
        cluster.weights.weight[1:, 0] += 3.0
    # (3 / 1.5)^2 / 2 nats, borne by 2 and 4 pairs, and by nobody where there are none.
    assert cluster.penalty(EVERYONE).tolist() == pytest.approx([0, 1.0, 0.5, 0])

    individual = start("individual", tiny_base)
    assert individual.penalty(EVERYONE).tolist() == [0, 0, 0, 0]
    with torch.no_grad():
        individual.offsets.weight[1:, 5] = 3 * 0.6 * tiny_base.embedding_std
    assert individual.penalty(EVERYONE).tolist() == pytest.approx([0, 9 / 4, 9 / 8, 0])


# -- nothing to gain -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["individual", "cluster"])
@pytest.mark.parametrize("text", [False, True])
def test_where_nothing_is_to_be_gained_all_are_the_generic_user(
    tiny_base: BaseModel, kind: str, text: bool
) -> None:
    model = pretrained(personal=False).initial(kind, tiny_base, text=text)
    assert isinstance(model, UniformUserModel)
    assert model.users == USERS
    assert list(model.parameters()) == []


def test_such_a_model_gives_all_the_same_logits_for_one_computation(tiny_base: BaseModel) -> None:
    users = pretrained(personal=False).initial("cluster", tiny_base)
    lm = PersonalizedLM(tiny_base, tiny_base.model, users, Encoder(tiny_base.chat, 64, 32))
    assert not lm.personalized
    assert conditions(lm, 0.5) == (False, True)
    known, generic = (lm(lm.pack([Row(user, [33, 34], [[60, 61, 1]])])).logps for user in (2, 0))
    assert torch.equal(known, generic)
    plain = PersonalizedLM.reference(tiny_base, lm.encoder)
    assert torch.equal(plain(plain.pack([Row(0, [33, 34], [[60, 61, 1]])])).logps, generic)


def test_one_cluster_is_one_computation(tiny_base: BaseModel) -> None:
    lm = personalise(tiny_base, lora=False)
    assert conditions(lm, 0.5) == (True, True)
    lm.user_model = start("cluster", tiny_base, torch.zeros(4, 1))
    assert not lm.personalized
    assert conditions(lm, 0.5) == (False, True)


# -- models that scale their embeddings ------------------------------------------------------------

SIZES: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
GEMMAS = {
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**SIZES)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES)),
}


@pytest.fixture(params=GEMMAS)
def gemma(request: pytest.FixtureRequest) -> BaseModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = GEMMAS[request.param]()
    return BaseModel(model.eval(), chat_tokenizer(tiny_tokenizer()), Path(), {})


def test_users_start_as_what_the_embedding_module_gives(gemma: BaseModel) -> None:
    module = gemma.model.get_input_embeddings()
    ids = opening_tokens(gemma.chat, TOKENS)
    expected = module(torch.tensor(ids)).detach()
    # Which is sqrt(d) times what the table holds.
    torch.testing.assert_close(expected, 32**0.5 * module.weight[ids].detach())
    model = start("individual", gemma, tokens=TOKENS)
    assert torch.equal(model(torch.tensor([0]))[0], expected)
    assert gemma.embedding_std == pytest.approx(32**0.5 * module.weight.std().item(), rel=1e-4)


def test_users_who_say_what_a_prompt_says_are_scored_alike(gemma: BaseModel) -> None:
    """User tokens that copy a prompt's opening do to a response what that opening does."""
    users = start("individual", gemma, init_scale=0.0)
    lm = PersonalizedLM(gemma, gemma.model, users, Encoder(gemma.chat, 64, 32))
    plain = PersonalizedLM.reference(gemma, lm.encoder)
    response = [60, 61, 62, 1]
    known = lm.score([Row(0, [33, 34], [response])], label="test")
    said = [*opening_tokens(gemma.chat, TOKENS), 33, 34]
    expected = plain.score([Row(0, said, [response])], label="test")
    torch.testing.assert_close(known.logps, expected.logps, rtol=1e-5, atol=1e-5)


# -- how prompts open ------------------------------------------------------------------------------


def test_opening_tokens_are_what_every_prompt_starts_with(tiny_base: BaseModel) -> None:
    header = tiny_base.tokenizer("<|start|>user\n", add_special_tokens=False)["input_ids"]
    assert opening_tokens(tiny_base.chat, 3) == header[:3]
    assert opening_tokens(tiny_base.chat, len(header) + 2) == [*header, *header[:2]]


def test_opening_tokens_without_a_template(tiny_base: BaseModel) -> None:
    plain = replace(tiny_base, chat=chat_tokenizer(tiny_tokenizer(chat=False)))
    assert opening_tokens(plain.chat, 3) == [0, 0, 0]
    plain.tokenizer.bos_token = None
    assert opening_tokens(plain.chat, 2) == [1, 1]


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [WEIGHTS, None])
@pytest.mark.parametrize("personal", [True, False])
def test_pretraining_survives_its_files(
    tiny_base: BaseModel, tmp_path: Path, weights: Tensor | None, personal: bool
) -> None:
    known = pretrained(weights, personal=personal)
    known.save(tmp_path)
    loaded = load_pretrained(tmp_path)
    assert list(loaded.users) == USERS
    for kind in ("uniform", "individual", "cluster"):
        got, expected = loaded.initial(kind, tiny_base), known.initial(kind, tiny_base)
        assert got.config() == expected.config()
        assert torch.equal(got.share, expected.share)
        for one, other in zip(got.parameters(), expected.parameters(), strict=True):
            assert torch.equal(one, other)


def test_other_users_start_as_strangers_of_the_same_sizes(tiny_base: BaseModel) -> None:
    others = pretrained(torch.zeros(4, 5)).untrained(["dan", "eve"], torch.tensor([0.0, 8.0, 0.0]))
    model = others.initial("cluster", tiny_base)
    assert model.users == ["dan", "eve"]
    assert model.config()["clusters"] == 5
    assert model.share.tolist() == [0, 1 / 8, 0]
    shut = pretrained(personal=False).untrained(["dan"], torch.tensor([0.0, 8.0]))
    assert isinstance(shut.initial("cluster", tiny_base), UniformUserModel)


def test_trained_user_models_are_handed_on(tiny_base: BaseModel, tmp_path: Path) -> None:
    lm = personalise(tiny_base, "cluster", lora=False)
    (tmp_path / "other").mkdir()

    def saved(directory: Path, **trained: Any) -> Pretrained:
        Pretrained(USERS, START, PAIRS, trained=trained).save(directory)
        return load_pretrained(directory)

    loaded = saved(tmp_path, cluster=lm.user_model)
    model = loaded.initial("cluster", tiny_base)
    assert torch.equal(model(EVERYONE), lm.user_model(EVERYONE))
    # Training draws its users to where the pretraining left them.
    assert torch.equal(model.starts, lm.user_model.weights.weight)
    assert model.share.tolist() == [0, 1 / 2, 1 / 4, 0]
    assert isinstance(loaded.initial("individual", tiny_base), IndividualUserModel)
    # What was trained without the users' texts is no start for a model that reads them.
    behind = loaded.initial("cluster", tiny_base, text=True)
    assert not torch.equal(behind(EVERYONE), lm.user_model(EVERYONE))
    other = saved(tmp_path / "other", **{"cluster-text": lm.user_model})
    behind = other.initial("cluster", tiny_base, text=True)
    assert torch.equal(behind(EVERYONE), lm.user_model(EVERYONE))

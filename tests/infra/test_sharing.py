"""Sharing work out among processes, seen from one of them at a time."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from personal import personalise
from preferences import prepared_pairs, some_pairs
from prlhf.infra import distributed
from prlhf.infra.errors import UserError
from prlhf.models.base import BaseModel, Encoder
from prlhf.models.conventions import chat_tokenizer
from prlhf.models.personalized import PersonalizedLM
from prlhf.reference import reference_pass
from prlhf.training.order import FILLER, PreferenceSampler, Visit, VisitedExamples
from tiny import tiny_llama, tiny_tokenizer


@pytest.fixture
def as_rank(monkeypatch):
    """Be one of several processes, as far as counting goes."""

    def become(rank: int, size: int) -> None:
        monkeypatch.setattr(distributed, "process_rank", lambda: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: size)

    return become


@pytest.fixture
def alone():
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_batches_are_dealt_out_whole_and_the_last_is_repeated(as_rank):
    batches = [[0, 1], [2, 3], [4], [5], [6]]
    dealt = {}
    for rank in range(3):
        as_rank(rank, 3)
        dealt[rank] = [(turn.rows, turn.own, turn.together) for turn in distributed.turns(batches)]
    assert dealt == {
        0: [([0, 1], True, 5), ([5], True, 2)],
        1: [([2, 3], True, 5), ([6], True, 2)],
        # Nobody may be missing from the second turn: a model that is spread out computes in step.
        2: [([4], True, 5), ([6], False, 2)],
    }


def test_one_process_does_all_batches_once():
    turns = list(distributed.turns([[3, 1], [2]]))
    assert [(turn.rows, turn.own, turn.together) for turn in turns] == [
        ([3, 1], True, 2),
        ([2], True, 1),
    ]


def test_an_epoch_is_filled_up_with_pairs_that_count_for_nothing():
    pairs = some_pairs(6)

    def order(**options) -> list[Visit]:
        return list(PreferenceSampler([1] * 6, seed=7, epoch=lambda: 2, **options))

    assert order(whole=4)[:6] == order()
    assert order(whole=4)[6:] == [Visit(FILLER, None)] * 2
    assert len(PreferenceSampler([1] * 6, seed=7, epoch=lambda: 2, whole=4)) == 8
    assert order(whole=3) == order()
    # Where one term is drawn for each pair, a filler has one, too.
    assert all(visit.as_user is not None for visit in order(whole=4, alpha=0.5))
    filler = VisitedExamples(pairs)[Visit(FILLER, True)]
    assert (filler.weight, filler.as_user) == (0.0, True)


def test_layers_are_spread_out_and_what_is_used_alone_is_not(alone):
    base = BaseModel(tiny_llama(), chat_tokenizer(tiny_tokenizer()), path=None, source={})
    rows = [pair.row(pair.user_index) for pair in some_pairs(4)]
    whole = personalise(base)
    wanted = whole(whole.pack(rows)).logps

    spread = tiny_llama().requires_grad_(False)
    distributed.shard(spread, torch.device("cpu"))
    lm = personalise(replace(base, model=spread))
    kinds = {
        name: isinstance(parameter, DTensor) for name, parameter in lm.causal_lm.named_parameters()
    }
    in_layers = {name: spread_out for name, spread_out in kinds.items() if ".layers." in name}
    assert {spread_out for name, spread_out in in_layers.items() if "lora_" in name} == {False}
    assert {spread_out for name, spread_out in in_layers.items() if "lora_" not in name} == {True}
    assert not any(kinds[name] for name in kinds.keys() - in_layers.keys())

    scores = lm(lm.pack(rows))
    torch.testing.assert_close(scores.logps, wanted)
    scores.logps.sum().backward()
    trained = [parameter for parameter in lm.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad is not None for parameter in trained)


def test_a_model_without_named_layers_is_not_spread_out(alone):
    model = tiny_llama()
    model._no_split_modules = None
    with pytest.raises(UserError, match="llama model cannot be sharded"):
        distributed.shard(model, torch.device("cpu"))


def test_only_the_main_process_has_features_and_writes_them(
    as_rank, monkeypatch, tiny_base: BaseModel, tmp_path
):
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)
    monkeypatch.setattr(dist, "reduce", lambda tensor, dst: None)
    monkeypatch.setattr(distributed, "broadcast", lambda value: value)
    lm = PersonalizedLM.reference(tiny_base, Encoder(tiny_base.chat, 64, 16))
    rows = [pair.row(0) for pair in some_pairs(3)]
    for rank in (0, 1):
        as_rank(rank, 2)
        scores = lm.score(rows, label="", features=True)
        assert (scores.features is None) == (rank == 1)
        directory = tmp_path / str(rank)
        directory.mkdir()
        reference_pass(lm, [prepared_pairs()], directory)
        assert len(list(directory.iterdir())) == (2 if rank == 0 else 0)

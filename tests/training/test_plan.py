"""The numbers of a run, what it sees of the data, and the order in which it sees it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from torch import nn
from transformers import TrainingArguments

from personal import personalise
from preferences import arguments, optimizer_params, prepared_pairs, sections, some_pairs
from prlhf.infra import distributed
from prlhf.infra.errors import UserError
from prlhf.models.base import BaseModel, Encoder
from prlhf.training.dataset import PreferenceDataset, users_of
from prlhf.training.finetune import fit
from prlhf.training.order import PreferenceSampler, balanced_order, epoch_order
from prlhf.training.plan import Coverage, Plan, coverage, doubts, make_plan, watched_pairs
from prlhf.training.trainer import PDPOTrainer


def plan_of(pairs: int, width: int = 576, **changes: object) -> Plan:
    return make_plan(optimizer_params(**changes), pairs=pairs, width=width)


# -- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "most", "expected"),
    [(1.0, None, 3), (1.0, 2, 2), (1.0, 9, 3), (2.0, 9, 6), (0.5, None, 2), (2.0, 5, 5)],
)
def test_steps_are_what_epochs_give_and_max_steps_at_most(
    epochs: float, most: int | None, expected: int
) -> None:
    """Hugging Face's `max_steps` alone would go on with a further epoch."""
    assert plan_of(10, epochs=epochs, max_steps=most, micro_batch_size=2).steps == expected


@pytest.mark.parametrize(
    ("pairs", "batch", "steps"),
    [
        (7, 4, 2),
        (360, 4, 90),
        (799, 4, 200),
        (800, 8, 100),
        (1600, 16, 100),
        (3199, 16, 200),
        (3200, 32, 100),
        (1_000_000, 32, 31_250),
    ],
)
def test_a_batch_leaves_a_hundred_steps_an_epoch(pairs: int, batch: int, steps: int) -> None:
    plan = plan_of(pairs, batch_size="auto", micro_batch_size=8)
    assert (plan.batch_size, plan.steps) == (batch, steps)
    assert plan.micro_batch_size == min(8, batch)


def test_processes_share_a_batch_that_does_not_depend_on_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 8)
    plan = plan_of(1600, batch_size="auto")
    assert (plan.batch_size, plan.micro_batch_size) == (16, 2)
    with pytest.raises(UserError, match=r"makes it 4 for 399 training pairs, .*processes \(8\)"):
        plan_of(399, batch_size="auto")


def test_the_adapters_learning_rate_falls_as_one_over_the_width() -> None:
    assert plan_of(10, 576, lora_lr="auto").lora_lr == 1e-3
    assert plan_of(10, 4096, lora_lr="auto").lora_lr == pytest.approx(1.4e-4, rel=0.01)
    assert plan_of(10, 4096, lora_lr=3e-4).lora_lr == 3e-4


def test_validations_and_checkpoints_are_shares_of_the_steps() -> None:
    plan = plan_of(100, eval_every=0.07, checkpoint_every=0.3, batch_size=1, micro_batch_size=1)
    assert (plan.eval_every, plan.checkpoint_every) == (7, 30)  # 0.07 * 100 > 7 in float64
    short = plan_of(12, eval_every=0.07, checkpoint_every=0.34)
    assert (short.eval_every, short.checkpoint_every) == (1, 2)
    # However long the run is, little of it is lost.
    assert plan_of(400_000, checkpoint_every=0.5).checkpoint_every == 500


def test_validation_looks_at_half_as_many_pairs_as_are_trained_on_meanwhile() -> None:
    settings = {"eval_every": 0.2, "batch_size": "auto"}
    assert plan_of(360, eval_pairs=500, **settings).eval_pairs == 36  # of 72
    assert plan_of(100_000, eval_pairs=500, **settings).eval_pairs == 500
    assert plan_of(1, eval_pairs=500, **settings).eval_pairs == 2
    assert plan_of(360, eval_pairs=None, **settings).eval_pairs is None


# -- the watched pairs ---------------------------------------------------------------------------


def of(users: list[int]) -> list:
    pairs = some_pairs(len(users))
    return [replace(pair, user_index=user) for pair, user in zip(pairs, users, strict=True)]


def test_a_sample_is_fixed_and_in_order() -> None:
    pairs = some_pairs(20)
    chosen = watched_pairs(pairs, 6, seed=1)
    assert len(chosen) == 6
    assert chosen == [pair for pair in pairs if pair in chosen]
    assert chosen == watched_pairs(pairs, 6, seed=1)
    assert chosen != watched_pairs(pairs, 6, seed=2)
    assert watched_pairs(pairs, 20, seed=1) == watched_pairs(pairs, None, seed=1) == pairs
    assert watched_pairs([], 6, seed=1) == []


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_users_have_as_many_pairs_in_it_as_each_other(seed: int) -> None:
    pairs = of([1] * 50 + [2] * 9 + [3] * 2)
    counts = Counter(users_of(watched_pairs(pairs, 12, seed)))
    assert counts[3] == 2
    assert sorted([counts[1], counts[2]]) == [5, 5]
    # With more users than pairs, no user has two.
    assert max(Counter(users_of(watched_pairs(of([*range(1, 41)] * 3), 25, seed))).values()) == 1


def test_pairs_of_a_table_need_not_be_encoded_for_it(tiny_base: BaseModel) -> None:
    class Refusing(Encoder):
        def prompt(self, prompt: str, user_text: str | None = None) -> list[int]:
            raise AssertionError

    table = prepared_pairs()
    dataset = PreferenceDataset(table, None, Refusing(tiny_base.tokenizer, 64, 32))
    assert users_of(dataset) == table["user_index"].tolist()


# -- the order -----------------------------------------------------------------------------------

CROWD = [1] * 60 + [2] * 25 + [3] * 12 + [4] * 3


@pytest.mark.parametrize("balance", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("epoch", [0, 1])
def test_pairs_are_visited_in_proportion_to_what_balance_gives_them(
    balance: float, epoch: int
) -> None:
    order = balanced_order(CROWD, balance, 7, epoch)
    assert len(order) == len(CROWD)
    sizes = Counter(CROWD)
    total = sum(n ** (1 - balance) for n in sizes.values())
    visits = Counter(order)
    of_user = Counter(CROWD[position] for position in order)
    for user, n in sizes.items():
        expected = len(CROWD) * n ** (1 - balance) / total
        assert abs(of_user[user] - expected) < 1
        own = [visits[position] for position, u in enumerate(CROWD) if u == user]
        assert set(own) <= {int(expected / n), int(expected / n) + 1}


def test_over_the_epochs_every_pair_gets_its_share() -> None:
    visits = np.zeros(len(CROWD))
    for epoch in range(400):
        np.add.at(visits, balanced_order(CROWD, 1.0, 7, epoch), 1)
    for user, n in Counter(CROWD).items():
        own = visits[np.array(CROWD) == user] / 400
        # 25 visits of each of the four users; the error of a share is at most 0.5 / sqrt(400).
        np.testing.assert_allclose(own, 25 / n, atol=0.11)


def test_an_order_is_fixed_random_and_another_in_each_epoch() -> None:
    one = balanced_order(CROWD, 1.0, 7, 0)
    assert one == balanced_order(CROWD, 1.0, 7, 0)
    assert one != balanced_order(CROWD, 1.0, 7, 1)
    assert one != balanced_order(CROWD, 1.0, 8, 0)
    first, second = Counter(one[:50]), Counter(one[50:])
    assert abs(sum(first[p] for p in range(60)) - sum(second[p] for p in range(60))) < 20


def test_the_sampler_balances_and_without_it_visits_each_pair_once() -> None:
    def order(**options: float) -> list[int]:
        sampler = PreferenceSampler(CROWD, seed=7, epoch=lambda: 3, **options)
        return [visit.position for visit in sampler]

    assert order() == epoch_order(len(CROWD), 7, 3)
    assert order(balance=1.0) == balanced_order(CROWD, 1.0, 7, 3)


def test_training_is_balanced(tiny_base: BaseModel, tmp_path: Path) -> None:
    """User 2's only pair comes up as often as all of user 1's together."""
    seen: list[int] = []

    class Watching(PDPOTrainer):
        def compute_loss(self, model, inputs, *args, **options):
            seen.extend(inputs["batch"].users.tolist())
            return super().compute_loss(model, inputs, *args, **options)

    objective, params = sections(user_balance=1.0)
    trainer = Watching(
        personalise(tiny_base),
        objective,
        params,
        arguments=arguments(params, tmp_path, pairs=8, watch=False),
        train_pairs=of([1] * 7 + [2]),
        eval_pairs=[],
    )
    trainer.train()
    assert Counter(seen) == {1: 4, 2: 4}


# -- what is seen --------------------------------------------------------------------------------


def seen_after(steps: int, users: list[int], batch: int = 4, balance: float = 0.0) -> Coverage:
    return coverage(
        PreferenceSampler(users, seed=7, epoch=lambda: 0, balance=balance), steps, batch
    )


def test_coverage_is_what_the_steps_visit() -> None:
    users = [1] * 5 + [2] * 4 + [3]
    assert seen_after(2, users).seen_pairs == 8
    assert seen_after(3, users) == Coverage(10, 10, 3, 3)  # the third step is of two pairs
    first = {users[position] for position in epoch_order(10, 7, 0)[:4]}
    assert seen_after(1, users) == Coverage(10, 4, 3, len(first))
    # Balanced, an epoch leaves out pairs of those who have many, which others may bring.
    one, many = seen_after(25, CROWD, balance=1.0), seen_after(25 * 12, CROWD, balance=1.0)
    visited = set(balanced_order(CROWD, 1.0, 7, 0))
    assert one.seen_pairs == len(visited) < 70
    assert many.seen_pairs > 95
    # The generic user is no user.
    assert seen_after(3, [0] * 6 + [1] * 4) == Coverage(10, 10, 1, 1)


@pytest.mark.parametrize(
    ("changes", "users", "expected"),
    [
        ({"epochs": 8.0}, [1, 2] * 5, None),
        ({}, [1, 2] * 5, "the run has 3 steps only: raise optimizer.epochs"),
        (
            {"max_steps": 20},
            [1, 2, 3] * 100,
            "the run sees 80 of 300 training pairs: raise optimizer.max_steps",
        ),
        (
            {"epochs": 0.3, "batch_size": 2, "micro_batch_size": 2},
            list(range(1, 201)),
            "the run sees 60 of 200 training pairs, never sees 140 of 200 users: raise "
            "optimizer.epochs",
        ),
    ],
)
def test_a_run_that_sees_little_is_doubted(
    changes: dict, users: list[int], expected: str | None
) -> None:
    params = optimizer_params(**changes)
    plan = make_plan(params, pairs=len(users), width=32)
    seen = seen_after(plan.steps, users, plan.batch_size)
    assert doubts(params, plan, seen) == expected


def test_a_doubt_is_said_once(
    tiny_base: BaseModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(
        PDPOTrainer,
        personalise(tiny_base),
        *sections(max_steps=1, batch_size=2, micro_batch_size=2),
        {"train": some_pairs(9), "validation": []},
        checkpoints=tmp_path,
        seed=7,
        label="train test",
    )
    assert capsys.readouterr().err.count("train test: warning: the run has 1 steps only, sees") == 1
    assert (run.seen.all_pairs, run.seen.seen_pairs) == (9, 2)
    assert isinstance(run.curves, pd.DataFrame)


# -- one device ----------------------------------------------------------------------------------


def test_a_process_that_sees_several_gpus_uses_one(
    tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("torch.cuda.device_count", lambda: 3)
        # Neither the CPU, on which nobody counts, nor a GPU, which there is none of.
        several = arguments(optimizer_params(), tmp_path, pairs=8, device="meta", watch=False)
        assert TrainingArguments.n_gpu.fget(several) == 3
    assert (several.n_gpu, several.train_batch_size) == (1, 4)
    objective, params = sections()
    trainer = PDPOTrainer(
        personalise(tiny_base),
        objective,
        params,
        arguments=several,
        train_pairs=some_pairs(8),
        eval_pairs=[],
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert not isinstance(trainer.model_wrapped, nn.DataParallel)

"""A step asks the device nothing that the host has to wait for, and batches are moved early."""

from __future__ import annotations

import copy
import traceback
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from personal import personalise, with_prior
from preferences import arguments, optimizer_params, sections, some_pairs
from prlhf.models.base import BaseModel
from prlhf.models.personalized import PersonalizedLM
from prlhf.params import RewardTrainParams
from prlhf.rewards.lm import PersonalizedRewardModel
from prlhf.rewards.training import RewardTrainer
from prlhf.training.dataset import PreferenceBatch, PreferenceCollator
from prlhf.training.trainer import PDPOTrainer, PreferenceTrainer

PAIRS = some_pairs(24, weights=True)

# What ends in a value, or in a shape that depends on values.
WAITING = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
}
INDEXING = {"aten::index", "aten::index_put_", "aten::index_put"}


class Watch(TorchDispatchMode):
    """Where something waited for the device, apart from the optimisers.

    Adam counts its steps in tensors that are on the host wherever the parameters are. (Adding up
    the gradients of users who come twice in a batch waits, too: `coalesce` needs their number.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.looking = False
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name in WAITING or (name in INDEXING and self.by_mask(args[1])):
            self.note(name)
        return func(*args, **(kwargs or {}))

    @staticmethod
    def by_mask(indices: list[Tensor | None]) -> bool:
        return any(index is not None and index.dtype == torch.bool for index in indices)

    def note(self, what: str) -> None:
        frames = traceback.extract_stack() if self.looking else []
        if frames and not any("/torch/optim/" in frame.filename for frame in frames):
            ours = [f for f in frames if "/torch/" not in f.filename and f.filename != __file__]
            self.found.append(f"{what} in {ours[-1].filename}:{ours[-1].lineno}")


class Between(TrainerCallback):
    """Watch from the log of the first step to that of the fifth."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.steps = 0

    def on_log(self, args, state, control, **kwargs) -> None:
        self.watch.looking = state.global_step == 1

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.steps += self.watch.looking
        if state.global_step == 4:
            self.watch.looking = False


def trainer_of(model: Any, where: Path, callbacks: list[Any], **changes: Any) -> PreferenceTrainer:
    train, params = sections(micro_batch_size=2, **changes)
    options: dict[str, Any] = {
        "arguments": arguments(params, where, pairs=len(PAIRS)),
        "train_pairs": PAIRS,
        "eval_pairs": PAIRS[:2],
        "callbacks": callbacks,
    }
    if isinstance(model, PersonalizedRewardModel):
        objective = RewardTrainParams(pairs="train", alpha=0.5)
        return RewardTrainer(model, objective, params, **options)
    return PDPOTrainer(model, train, params, **options)


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize(
    ("kind", "reward"), [("cluster", False), ("individual", False), ("cluster", True)]
)
def test_between_two_logs_nothing_waits_for_the_device(
    tiny_base: BaseModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    reward: bool,
    sampling: bool,
) -> None:
    lm = personalise(tiny_base, kind, dropout=0.1)
    with_prior(lm.user_model)
    model: Any = PersonalizedRewardModel(lm) if reward else lm
    watch = Watch()
    between = Between(watch)
    trainer = trainer_of(
        model, tmp_path, [between], term_sampling=sampling, nll_coef=0.5, dpop_coef=0.5
    )
    for name in ("cpu", "numpy", "tolist"):
        original = getattr(Tensor, name)

        def noted(self, *args, original=original, name=name, **options):
            watch.note(name)
            return original(self, *args, **options)

        monkeypatch.setattr(Tensor, name, noted)
    with watch:
        trainer.train()
    assert between.steps == 4
    assert watch.found == []


def test_the_watch_sees_what_waits() -> None:
    watch = Watch()
    watch.looking = True
    values = torch.arange(3.0)
    waits = (lambda: values[1].item(), lambda: float(values[1]), lambda: bool(values[1] > 0))
    with watch:
        for number, wait in enumerate((*waits, lambda: values[values > 0], values.nonzero), 1):
            wait()
            assert len(watch.found) == number
        values[torch.tensor([2, 0])] = 1.0
        assert len(watch.found) == number


# -- batches on their way ------------------------------------------------------------------------


def batch_of(lm: PersonalizedLM, **drawn: Any) -> PreferenceBatch:
    return PreferenceCollator(lm.pack, True, True)([replace(p, **drawn) for p in PAIRS[:3]])[
        "batch"
    ]


@pytest.mark.parametrize("drawn", [{}, {"as_user": True}])
def test_every_tensor_of_a_batch_is_pinned_and_moved(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch, drawn: dict[str, bool]
) -> None:
    batch = batch_of(personalise(tiny_base), **drawn)
    pinned: list[int] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor.data_ptr())
        return tensor.clone()

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    same = batch.pin_memory()
    moved = batch.to("meta")
    tensors = 0
    for part, other, there in (
        (batch, same, moved),
        (batch.packed, same.packed, moved.packed),
    ):
        for field in fields(part):
            value = getattr(part, field.name)
            if isinstance(value, Tensor):
                tensors += 1
                assert value.data_ptr() in pinned
                assert torch.equal(getattr(other, field.name), value)
                assert getattr(there, field.name).is_meta
            elif field.name != "packed":
                assert getattr(other, field.name) == value
    assert tensors == len(pinned) == 12 + bool(drawn)


def test_a_gpu_gets_its_batches_from_a_process_of_their_own(tmp_path: Path) -> None:
    gpu = arguments(optimizer_params(), tmp_path, pairs=8, device="cuda")
    assert gpu.dataloader_pin_memory
    assert gpu.dataloader_num_workers == 1
    assert gpu.accelerator_config.non_blocking
    plain = arguments(optimizer_params(), tmp_path, pairs=8)
    assert not plain.dataloader_pin_memory
    assert plain.dataloader_num_workers == 0


@pytest.mark.parametrize("sampling", [False, True])
def test_such_a_process_changes_nothing(
    tiny_base: BaseModel, tmp_path: Path, sampling: bool
) -> None:
    start = personalise(tiny_base, dropout=0.2)
    found = []
    for workers in (0, 1):
        lm = copy.deepcopy(start)
        trainer = trainer_of(lm, tmp_path / str(workers), [], term_sampling=sampling, max_steps=8)
        trainer.args.dataloader_num_workers = workers
        if workers:
            trainer.args.dataloader_multiprocessing_context = "fork"
            trainer.args.dataloader_prefetch_factor = 4
        torch.manual_seed(3)
        trainer.train()
        assert isinstance(trainer.callback_handler.train_dataloader, DataLoader)
        assert trainer.callback_handler.train_dataloader.num_workers == workers
        found.append({n: p.detach() for n, p in lm.named_parameters()})
    for name, weight in found[0].items():
        assert torch.equal(weight, found[1][name]), name

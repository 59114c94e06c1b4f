"""Several processes that compute one thing: which this is, what it does, putting it together.

All processes run the same stage on the same files. They share out batches, so that a batch is what
it would be in one process; only the main process says anything and writes files. In a process of
its own, which is the default, everything here does nothing.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from prlhf import progress
from prlhf.errors import UserError
from prlhf.io import atomic_path

T = TypeVar("T")

_sharded = False


@contextlib.contextmanager
def joined(strategy: str) -> Iterator[None]:
    """Be one of the processes that the environment describes, as `torchrun` does.

    Args:
        strategy: what happens to the base model's weights: `ddp`, each process has all of them, or
            `fsdp`, each has a part.
    """
    global _sharded
    # The processes agree on small things on the CPU, whatever they compute on.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    _sharded = strategy == "fsdp" and world_size() > 1
    if not is_main():
        progress.silence()
    yield
    # Not after an error: it would wait for processes that are gone, or wait for this one.
    _sharded = False
    dist.destroy_process_group()


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """Which of those on this machine this is, from 0: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that writes files."""
    return rank() == 0


@contextlib.contextmanager
def output(path: Path) -> Iterator[Path]:
    """A new directory that becomes `path`, as `atomic_path` has it; only the main process's does.

    The others write to one that is thrown away.
    """
    if is_main():
        with atomic_path(path, directory=True) as directory:
            yield directory
    else:
        with tempfile.TemporaryDirectory(prefix="prlhf-") as name:
            yield Path(name)


def sharded() -> bool:
    """Whether the base model is spread over the processes, which then compute in step."""
    return _sharded


# -- sharing out work ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """One batch of this process.

    Attributes:
        rows: what is in it.
        own: whether its results count. Where there are fewer batches left than processes, some
            repeat the last one, because those of a model that is spread out compute in step.
        together: rows that all processes do in this turn.
    """

    rows: list[int]
    own: bool
    together: int


def turns(batches: Sequence[list[int]]) -> Iterator[Turn]:
    """Deal batches out to the processes, one each at a time.

    Neighbours in a list that is ordered by length are of like size, so nobody waits for long.
    """
    size = world_size()
    for first in range(0, len(batches), size):
        dealt = batches[first : first + size]
        own = rank() < len(dealt)
        yield Turn(dealt[rank()] if own else dealt[-1], own, sum(map(len, dealt)))


def put_together(*results: Tensor | None) -> None:
    """Fill in, in place, what the other processes computed: tensors on the CPU, zero elsewhere."""
    if world_size() > 1:
        for result in results:
            if result is not None:
                dist.all_reduce(result)


def merged(results: dict[int, T]) -> dict[int, T]:
    """The results of all processes, which share no key."""
    if world_size() == 1:
        return results
    gathered: list[dict[int, T]] = [{} for _ in range(world_size())]
    dist.all_gather_object(gathered, results)
    return {key: value for part in gathered for key, value in part.items()}


def total(values: Tensor) -> Tensor:
    """The sum over the processes, on the device of `values`."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def told(value: T) -> T:
    """What the main process says `value` is."""
    if world_size() == 1:
        return value
    said = [value]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def wait_for_all() -> None:
    """Go on when every process is here."""
    if world_size() > 1:
        dist.all_reduce(torch.zeros(1))


def require_agreement(value: str) -> None:
    """Make sure that every process has come to the same value.

    Raises:
        UserError: one has not, because it sees other files.
    """
    if world_size() > 1:
        values: list[str | None] = [None] * world_size()
        dist.all_gather_object(values, value)
        if len(set(values)) > 1:
            raise UserError(
                "the processes see different files",
                where="launch",
                fix="all machines need the same project directory, installation and parameters",
            )


# -- the model -----------------------------------------------------------------------------------


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let the processes of a machine do something in turn, such as fill its memory."""
    for turn in range(int(os.environ.get("LOCAL_WORLD_SIZE", "1"))):
        if turn == local_rank():
            yield
        wait_for_all()


def shard(model: PreTrainedModel, device: torch.device) -> None:
    """Spread a frozen model over all processes (FSDP2) and put it on `device`.

    Each process keeps a part of every decoder layer; a layer is whole only while it computes. What
    is outside the layers (embeddings, output head, last norm) stays whole in each: the head and the
    embeddings are used by themselves, in chunks and without the model around them. What is added to
    the model later, adapters above all, is none of FSDP's business and stays whole as well.

    Raises:
        UserError: the architecture does not say what its layers are.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    kinds = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    if not layers:
        raise UserError(
            f"a {model.config.model_type} model cannot be spread over processes",
            where="launch.strategy",
            fix="use ddp, or choose another architecture",
        )
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    outside = {parameter for parameter in model.parameters() if id(parameter) not in inside}
    mesh = init_device_mesh(device.type, (world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(model.base_model, mesh=mesh, ignored_params=outside)
    for parameter in outside:
        parameter.data = parameter.data.to(device)


def replicate(model: nn.Module, apart: Iterable[nn.Parameter]) -> nn.Module:
    """Average the gradients of a model's trainable parameters over the processes (DDP).

    Args:
        model: its frozen parameters, which all processes have read from the same files, are left
            alone.
        apart: parameters that `average_rows` looks after.
    """
    skipped = {id(parameter) for parameter in apart}
    names = [
        name
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad or id(parameter) in skipped
    ]
    names += [name for name, _ in model.named_buffers()]
    ddp = nn.parallel.DistributedDataParallel
    ddp._set_params_and_buffers_to_ignore_for_model(model, names)
    return ddp(model)


@torch.no_grad()
def average_rows(tables: Iterable[nn.Parameter]) -> None:
    """Average sparse gradients over the processes, at the cost of the rows they hold.

    DDP would have NCCL add sparse tensors, which it does not do, and dense ones would cost as much
    as the table is long.
    """
    if world_size() == 1:
        return
    for table in tables:
        grad = table.grad
        if grad is None:
            grad = torch.zeros_like(table, layout=torch.sparse_coo)
        grad = grad.coalesce()
        rows = _gather_rows(grad.indices()[0])
        values = _gather_rows(grad.values()) / world_size()
        # Rows that several processes have become one, summed in the order of the processes.
        table.grad = torch.sparse_coo_tensor(
            rows[None], values, table.shape, check_invariants=False
        ).coalesce()


def _gather_rows(own: Tensor) -> Tensor:
    """Tensors [n, ...] of all processes, with n of its own in each, one after the other."""
    count = torch.tensor([len(own)], device=own.device)
    counts = [torch.zeros_like(count) for _ in range(world_size())]
    dist.all_gather(counts, count)
    lengths = [int(each) for each in counts]
    padded = own.new_zeros(max(lengths), *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

"""Several processes that run one stage: their ranks, sharing of work, collecting of results.

All processes run the same stage on the same files. They divide the batches among themselves, each
batch being the same as in a single process; only the main process prints and writes files. In a
single process, which is the default, all of this does nothing.
"""

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

from prlhf.infra import progress
from prlhf.infra.errors import UserError
from prlhf.infra.io import atomic_path

T = TypeVar("T")

_sharded = False


@contextlib.contextmanager
def joined(strategy: str) -> Iterator[None]:
    """Join the processes that the environment describes, in the variables of `torchrun`.

    Args:
        strategy: where the base model's weights are: `ddp`, every process holds all of them, or
            `fsdp`, each holds a part.
    """
    global _sharded
    # Small objects are exchanged on the CPU, whatever the processes compute on.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    _sharded = strategy == "fsdp" and world_size() > 1
    if not is_main():
        progress.silence()
    yield
    # Not in a `finally`: after an error this would wait for processes that are gone.
    _sharded = False
    dist.destroy_process_group()


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def process_rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """The number of this process among those on this machine, from 0, and so of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that writes files."""
    return process_rank() == 0


@contextlib.contextmanager
def output(path: Path) -> Iterator[Path]:
    """A new directory that becomes `path` at the end, see `atomic_path`.

    Processes other than the main one get a temporary directory, which is deleted.
    """
    if is_main():
        with atomic_path(path, directory=True) as directory:
            yield directory
    else:
        with tempfile.TemporaryDirectory(prefix="prlhf-") as name:
            yield Path(name)


def sharded() -> bool:
    """Whether the base model is sharded over the processes, which then compute in lockstep."""
    return _sharded


# -- sharing out work ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """One batch of this process.

    Attributes:
        rows: the rows in it.
        own: whether its results count. If there are fewer batches left than processes, some
            processes repeat the last one, because a sharded model needs all of them to compute.
        together: rows that all processes compute in this turn.
    """

    rows: list[int]
    own: bool
    together: int


def turns(batches: Sequence[list[int]]) -> Iterator[Turn]:
    """This process's batches: in each turn every process takes the next one.

    In a list ordered by length the batches of a turn have similar sizes, so no process waits long.
    """
    size = world_size()
    for first in range(0, len(batches), size):
        dealt = batches[first : first + size]
        own = process_rank() < len(dealt)
        yield Turn(dealt[process_rank()] if own else dealt[-1], own, sum(map(len, dealt)))


def all_reduce_sum_(*results: Tensor | None) -> None:
    """Sum tensors over the processes, in place: a process leaves zeros where it did nothing."""
    if world_size() > 1:
        for result in results:
            if result is not None:
                dist.all_reduce(result)


def sum_to_main_(result: Tensor) -> bool:
    """Sum a tensor over the processes, in place in the main one only.

    Returns:
        Whether this is the main process; in the others nothing useful is left in the tensor.
    """
    if world_size() > 1:
        dist.reduce(result, dst=0)
    return is_main()


def gather(results: dict[int, T]) -> dict[int, T]:
    """The results of all processes, whose keys are disjoint, in every process."""
    if world_size() == 1:
        return results
    gathered: list[dict[int, T]] = [{} for _ in range(world_size())]
    dist.all_gather_object(gathered, results)
    return {key: value for part in gathered for key, value in part.items()}


def broadcast(value: T) -> T:
    """The main process's `value`, in every process."""
    if world_size() == 1:
        return value
    said = [value]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.all_reduce(torch.zeros(1))


def require_agreement(value: str) -> None:
    """Make sure that every process has the same `value`, else `UserError`: it sees other files."""
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
    """Run a block in one process of a machine after the other, to save memory."""
    for turn in range(int(os.environ.get("LOCAL_WORLD_SIZE", "1"))):
        if turn == local_rank():
            yield
        barrier()


def shard(model: PreTrainedModel, device: torch.device) -> None:
    """Shard a frozen model over all processes (FSDP2) and put it on `device`.

    Each process keeps a part of every decoder layer; a layer is whole only while it computes.
    Embeddings, output head and last norm stay whole in each process, because they are also used on
    their own, in chunks. Modules added later, such as adapters, are not sharded.

    Raises:
        UserError: the architecture does not name its layers.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    kinds = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    if not layers:
        raise UserError(
            f"a {model.config.model_type} model cannot be sharded over processes",
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
        model: its frozen parameters are ignored; all processes read them from the same files.
        apart: parameters to leave to `average_rows`.
    """
    skipped = set(map(id, apart))
    names = [n for n, p in model.named_parameters() if not p.requires_grad or id(p) in skipped]
    names += [name for name, _ in model.named_buffers()]
    ddp = nn.parallel.DistributedDataParallel
    ddp._set_params_and_buffers_to_ignore_for_model(model, names)
    return ddp(model)


@torch.no_grad()
def average_rows(tables: Iterable[nn.Parameter]) -> None:
    """Average sparse gradients over the processes, exchanging only the rows they hold.

    DDP cannot do this: NCCL does not add sparse tensors, and dense ones would be as long as the
    table.
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
        # Equal rows of several processes are summed, in the order of the processes.
        table.grad = torch.sparse_coo_tensor(
            rows[None], values, table.shape, check_invariants=False
        ).coalesce()


def _gather_rows(own: Tensor) -> Tensor:
    """The tensors [n, ...] of all processes concatenated; n may differ between them."""
    count = torch.tensor([len(own)], device=own.device)
    counts = [torch.zeros_like(count) for _ in range(world_size())]
    dist.all_gather(counts, count)
    lengths = [int(each) for each in counts]
    padded = own.new_zeros(max(lengths), *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

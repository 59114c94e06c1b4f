"""Experiment trackers: where a training run reports its figures while it runs.

Stages are not told of them, as they are not told of `launch`: the command line says here what
`track` in params.yaml wants, and training asks here. No result depends on it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prlhf.infra.errors import UserError
from prlhf.infra.io import CHECKPOINTS

if TYPE_CHECKING:
    from transformers import TrainerCallback

LOGS: Final = Path(".cache/trackers")
"""What trackers keep on disk, a directory each; neither Git's nor DVC's business."""

WHERE: Final = "params.yaml: track.report_to"


class _Wanted(NamedTuple):
    trackers: tuple[str, ...]
    project: str


NONE: Final = _Wanted((), "")
_wanted: ContextVar[_Wanted] = ContextVar("wanted trackers", default=NONE)


@contextmanager
def reporting_to(trackers: Sequence[str], project: str) -> Iterator[None]:
    """Have the training runs of this context report to these trackers, under a project's name."""
    token = _wanted.set(_Wanted(tuple(trackers), project))
    try:
        yield
    finally:
        _wanted.reset(token)


def run_name(checkpoints: Path) -> str:
    """What a run is called: as its directory of checkpoints, so that it has its name for itself."""
    inside = checkpoints.is_relative_to(CHECKPOINTS)
    return checkpoints.relative_to(CHECKPOINTS).as_posix() if inside else checkpoints.name


def tracking_callbacks(run: str) -> list[TrainerCallback]:
    """A run in each of the wanted trackers, as callbacks of transformers' `Trainer`.

    To be called in one process of several, which then reports for all.

    Args:
        run: what the run is called.

    Raises:
        UserError: a tracker is not installed, or a run cannot be started there.
    """
    wanted = _wanted.get()
    for name in wanted.trackers:
        if importlib.util.find_spec(name) is None:
            fix = f"pip install {name}, or take it out"
            raise UserError(f"{name} is not installed", where=WHERE, fix=fix)
    found: list[TrainerCallback] = []
    for name in wanted.trackers:
        directory = LOGS / name
        directory.mkdir(parents=True, exist_ok=True)
        found += TRACKERS[name](directory, wanted.project, run)
    return found


def _tensorboard(directory: Path, project: str, run: str) -> list[TrainerCallback]:
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(str(directory / run)))]


def _wandb(directory: Path, project: str, run: str) -> list[TrainerCallback]:
    import wandb
    from transformers.integrations import WandbCallback

    try:
        wandb.init(
            project=os.environ.get("WANDB_PROJECT", project),
            name=run,
            dir=str(directory.parent),  # it makes one of its own name there
            # Neither its own lines on the terminal, nor the terminal's lines over there.
            settings=wandb.Settings(silent=True, console="off"),
        )
    except wandb.Error as error:
        problem = f"wandb starts no run: {str(error).strip().splitlines()[0]}"
        fix = "run `wandb login`, or set WANDB_MODE=offline"
        raise UserError(problem, where=WHERE, fix=fix) from error
    return [WandbCallback(), _at_end(wandb.finish)]


def _mlflow(directory: Path, project: str, run: str) -> list[TrainerCallback]:
    import mlflow
    from transformers.integrations import MLflowCallback

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    try:
        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{directory / 'runs.db'}")
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", project))
        mlflow.start_run(run_name=run)
    except mlflow.MlflowException as error:
        problem = f"mlflow starts no run: {str(error).strip().splitlines()[0]}"
        raise UserError(problem, where=WHERE, fix="check MLFLOW_TRACKING_URI") from error
    return [MLflowCallback(), _at_end(mlflow.end_run)]


def _dvclive(directory: Path, project: str, run: str) -> list[TrainerCallback]:
    from dvclive import Live
    from transformers.integrations import DVCLiveCallback

    # Without files that DVC would take for the pipeline's, and without an experiment of its own:
    # `dvc repro` and `dvc exp run` make those.
    path = str(directory / run)
    live = Live(path, resume=Path(path).exists(), dvcyaml=None, save_dvc_exp=False, report=None)
    return [DVCLiveCallback(live)]


TRACKERS: Final[dict[str, Callable[[Path, str, str], list[TrainerCallback]]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "dvclive": _dvclive,
}
"""Each starts a run: given its directory, the project's and the run's name."""


def _at_end(action: Callable[[], Any]) -> TrainerCallback:
    """Close what transformers leaves open when the run was not started by its own callback."""
    from transformers import TrainerCallback

    class AtEnd(TrainerCallback):
        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            action()

    return AtEnd()

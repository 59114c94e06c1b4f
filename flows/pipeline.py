"""The flow `prlhf`: the pipeline of dvc.yaml, stage by stage, each run by DVC.

python -m flows run --help      runs it here, with or without a server
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from prefect import flow, get_client, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from pydantic import Field

import flows  # noqa: F401  (its environment comes before Prefect)
from flows import graph, parents, process, runner
from flows import workspace as workspaces
from flows.artifacts import metrics_before, publish
from flows.limits import gpu_limit
from prlhf.infra.errors import UserError
from prlhf.project import experiments
from prlhf.project.dvc import environment


@flow(name="prlhf", persist_result=False)
def pipeline(
    targets: list[str] | None = None,
    overrides: dict[str, Any] | None = None,
    experiment: str | None = None,
    parallel: Annotated[int, Field(ge=1)] = 1,
    timeout: Annotated[float, Field(gt=0)] | None = None,
) -> State[Any]:
    """Bring the pipeline up to date.

    Args:
        targets: Stages to bring up to date, with all that they need; by default all. `train`
            stands for every `train@...`.
        overrides: Parameters of this run that differ from params.yaml: `{"train.alpha": 0.3}`. The
            run then works on a copy of the project, and its result is a DVC experiment.
        experiment: An overlay in experiments/, by name; `overrides` come on top.
        parallel: Stages that may run side by side.
        timeout: Seconds that a stage may take, unless dvc.yaml says otherwise; none by default.
    """
    commands = process.Commands()
    parents.watch(commands.stop, parents.workers())
    try:
        return run(
            Path.cwd(),
            commands,
            targets=targets,
            changes=changes_of(Path.cwd(), overrides, experiment),
            experiment=experiment,
            parallel=parallel,
            timeout=timeout,
        )
    except UserError as error:
        return failed(error)
    except BaseException:
        # Prefect waits for the tasks before it lets a cancelled run end.
        commands.stop()
        raise


def run(
    directory: Path,
    commands: process.Commands,
    *,
    targets: list[str] | None = None,
    changes: Mapping[str, Any] | None = None,
    experiment: str | None = None,
    parallel: int = 1,
    timeout: float | None = None,
) -> State[Any]:
    """Run the pipeline as part of the flow run that is going on, and attach its results.

    Raises:
        UserError: There is no project, no such stage, or the changes are wrong.
    """
    project = graph.read(directory, environment())
    before = metrics_before(project.root, project.metrics)
    if not changes:
        state, made = _stages(project, environment(), commands, targets, parallel, timeout)
        publish(project.root, project.metrics, before, made, None)
        return state
    graph.select(project, targets)
    with workspaces.workspace(
        project.root, project.cache, changes, commands, logged()
    ) as workspace:
        get_run_logger().info("running with %s in %s", dict(changes), workspace.path)
        copy = graph.read(workspace.path, workspace.variables)
        state, made = _stages(copy, workspace.variables, commands, targets, parallel, timeout)
        kept = "-".join(filter(None, [experiment, flow_run.get_name()]))
        report = project.root / workspaces.PLACE / "reports" / f"{kept}.html"
        publish(copy.root, copy.metrics, before, made, report)
        if not state.is_completed():
            return state
        ran = [node.name for node in graph.select(copy, targets)]
        others = [node for node in copy.nodes.values() if node.name not in ran]
        missing = any(not (copy.root / out).exists() for node in others for out in node.outs)
        name = workspaces.record(
            workspace,
            kept,
            ", ".join(f"{key}={value}" for key, value in changes.items()),
            ran,
            copy.uncached,
            commands,
            logged(),
        )
        workspaces.remove(workspace)
    also = ", and complains of other stages' results, which are not here" if missing else ""
    restores = f"`dvc exp apply {name}` restores it{also}"
    return Completed(message=f"{state.message}; kept as experiment {name} ({restores})")


def changes_of(
    root: Path, overrides: Mapping[str, Any] | None, experiment: str | None
) -> dict[str, Any]:
    """The changes of an experiment's overlay, with those of the run on top.

    Raises:
        UserError: There is no such overlay.
    """
    changes: dict[str, Any] = {}
    if experiment is not None:
        changes.update(experiments.overrides(experiment, root / "experiments"))
    changes.update(overrides or {})
    return changes


def failed(error: UserError) -> State[Any]:
    """The state of a run that the user has to mend something for."""
    log = get_run_logger()
    for line in error.lines():
        log.error("error: %s", line)
    first, *more = error.lines()
    rest = f" (and {len(more)} more, see the log)" if more else ""
    return Failed(message=f"error: {first}{rest}")


def logged() -> Callable[[str], None]:
    """Takes lines to the run's log."""
    log = get_run_logger()
    return lambda line: log.log(logging.INFO, "%s", line) if line else None


def _stages(
    project: graph.Graph,
    variables: Mapping[str, str],
    commands: process.Commands,
    targets: list[str] | None,
    parallel: int,
    timeout: float | None,
) -> tuple[State[Any], set[str]]:
    """Run the stages; the run's state, and the outputs that are up to date now."""
    nodes = graph.select(project, targets)
    with get_client(sync_client=True) as client, gpu_limit(client):
        done = runner.run_stages(
            nodes,
            runner.Run(project.root, commands, variables, timeout),
            parallel=parallel,
            client=client,
            flow_run_id=UUID(flow_run.get_id()),
        )
    made = {out for node in nodes if done[node.name].good for out in node.outs}
    return runner.summary(done), made

"""The stages of one run as tasks of a Prefect flow run, each after those that it needs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State, TaskRunResult
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Cancelled, Completed, Failed, Pending

from flows.graph import Node, Settings, settings
from flows.limits import GPU
from flows.process import Commands
from flows.stage import Kind, Outcome, reproduce

_STATES: dict[Kind, Callable[[str], State[Any]]] = {
    Kind.RAN: lambda message: Completed(message=message),
    Kind.RESTORED: lambda message: Completed(name="Restored", message=message),
    Kind.UNCHANGED: lambda message: Completed(name="Cached", message=message),
    Kind.FAILED: lambda message: Failed(message=message),
    Kind.TIMED_OUT: lambda message: Failed(name="TimedOut", message=message),
    Kind.STOPPED: lambda message: Cancelled(message=message),
}
_KINDS = {
    "Completed": Kind.RAN,
    "Restored": Kind.RESTORED,
    "Cached": Kind.UNCHANGED,
    "TimedOut": Kind.TIMED_OUT,
    "Cancelled": Kind.STOPPED,
}


class Run:
    """Where stages run, and how. (No dataclass: Prefect would look into it for task runs.)

    Attributes:
        root: The project.
        commands: What ends the processes.
        variables: The environment.
        timeout: Seconds that a stage may take which says nothing of its own; None for any time.
    """

    def __init__(
        self, root: Path, commands: Commands, variables: Mapping[str, str], timeout: float | None
    ) -> None:
        self.root = root
        self.commands = commands
        self.variables = variables
        self.timeout = timeout


@dataclass(frozen=True)
class Done:
    """A stage that is dealt with: what became of it, and its task run."""

    outcome: Outcome | None
    run_id: UUID
    state: State[Any]

    @property
    def good(self) -> bool:
        return self.outcome is not None and self.outcome.good

    @property
    def changed(self) -> bool:
        return self.outcome is None or self.outcome.kind is not Kind.UNCHANGED


class _NoEmptyTraceback(logging.Filter):
    """Prefect logs a state that a task returned like an exception: with a traceback of none."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[0] is None:
            record.exc_info = None
        return True


_NO_EMPTY_TRACEBACK = _NoEmptyTraceback()


@task(cache_policy=NO_CACHE, persist_result=False)
def run_stage(name: str, run: Run, timeout: float | None) -> State[Any]:
    """Bring one stage up to date through DVC."""
    log = get_run_logger()

    def on_line(line: str) -> None:
        if line:
            bad = line.startswith(("error: ", "ERROR: "))
            log.log(logging.ERROR if bad else logging.INFO, "%s", line)

    outcome = reproduce(
        name,
        run.commands,
        root=run.root,
        variables=run.variables,
        on_line=on_line,
        timeout=timeout,
    )
    return _STATES[outcome.kind](outcome.message)


def run_stages(
    nodes: Sequence[Node],
    run: Run,
    *,
    parallel: int,
    client: SyncPrefectClient,
    flow_run_id: UUID,
) -> dict[str, Done]:
    """Run what is stale, and what follows from it; say of the rest that it is unchanged.

    A failure stops what needs the failed stage, and nothing else.

    Args:
        nodes: The stages, those that others need before them.
        run: Where and how.
        parallel: Stages that may run side by side.
        client: For the task runs of stages that need no process.
        flow_run_id: The flow run.

    Raises:
        UserErrors: `meta` of a stage in dvc.yaml is wrong.
    """
    log = get_run_logger()
    logging.getLogger("prefect.task_runs").addFilter(_NO_EMPTY_TRACEBACK)
    chosen = {node.name: settings(node) for node in nodes}
    done: dict[str, Done] = {}
    running: dict[PrefectFuture[State[Any]], Node] = {}
    waiting = list(nodes)

    def record(node: Node, state: State[Any], outcome: Outcome | None) -> None:
        # Not through the task engine: it would wait for the GPU, too, and costs more.
        made = client.create_task_run(
            task=_task(node, chosen[node.name], run),
            flow_run_id=flow_run_id,
            dynamic_key=node.name,
            name=node.name,
            state=state,
            task_inputs={
                "wait_for": [TaskRunResult(id=done[n].run_id) for n in node.needs if n in done]
            },
        )
        state.state_details.task_run_id = made.id
        state.state_details.flow_run_id = flow_run_id
        # Prefect asks states that a task waits for about their results.
        state.data = node.name
        done[node.name] = Done(outcome, made.id, state)
        log.info("%s: %s", node.name, state.message)

    while waiting or running:
        for node in list(waiting):
            needs = [name for name in node.needs if name in chosen]
            bad = [name for name in needs if name in done and not done[name].good]
            if bad:
                record(node, Pending(name="NotReady", message=f"needs {', '.join(bad)}"), None)
            elif not all(name in done for name in needs):
                continue
            elif not node.stale and not any(done[name].changed for name in needs):
                outcome = Outcome(Kind.UNCHANGED, Kind.UNCHANGED.value)
                record(node, _STATES[outcome.kind](outcome.message), outcome)
            elif len(running) < parallel:
                setting = chosen[node.name]
                timeout = run.timeout if setting.timeout is None else setting.timeout
                future = _task(node, setting, run).submit(
                    node.name, run, timeout, wait_for=[done[name].state for name in needs]
                )
                running[future] = node
            else:
                continue
            waiting.remove(node)
        if running:
            future = next(as_completed(list(running)))
            future.wait()
            node = running.pop(future)
            state = future.state
            kind = _KINDS.get(state.name or "", Kind.FAILED)
            done[node.name] = Done(Outcome(kind, state.message or ""), future.task_run_id, state)
    return done


def summary(done: Mapping[str, Done]) -> State[Any]:
    """The flow run's state: what became of its stages, or the first failure."""
    bad = [
        (name, one.outcome)
        for name, one in done.items()
        if one.outcome is not None and not one.outcome.good
    ]
    if bad:
        name, outcome = bad[0]
        others = [f"{other} failed, too" for other, _ in bad[1:]]
        message = outcome.message
        if not message.startswith(f"error: {name}: "):
            message = f"{message} [{name}]"
        kind = Cancelled if outcome.kind is Kind.STOPPED else Failed
        return kind(message="; ".join([message, *others]))
    counts = Counter(one.outcome.kind for one in done.values() if one.outcome is not None)
    parts = [f"{counts[kind]} {kind.value}" for kind in Kind if counts[kind]]
    return Completed(message=f"{len(done)} stages: {', '.join(parts)}")


def _task(node: Node, setting: Settings, run: Run) -> Task[..., State[Any]]:
    return run_stage.with_options(
        name=node.name,
        task_run_name=node.name,
        description=node.desc,
        tags=[GPU] if setting.gpu else [],
        retries=setting.retries,
        retry_delay_seconds=setting.retry_delay,
        retry_condition_fn=lambda *_: not run.commands.stopped,
    )

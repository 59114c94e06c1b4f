"""The flow `prlhf-new-feedback`: takes new feedback into the store; the pipeline runs if any came.

python -m flows new-feedback --help      runs it here, with or without a server
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

import flows  # noqa: F401  (its environment comes before Prefect)
from flows import parents, process
from flows.pipeline import failed, run
from prlhf.infra.errors import UserError
from prlhf.infra.io import write_text

PENDING = Path(".dvc/tmp/flows/new-feedback.pending")
"""There while feedback is being taken in and the pipeline runs on it. A killed run leaves it, so
that the next one runs the pipeline, though it finds nothing new."""


@flow(name="prlhf-new-feedback", persist_result=False)
def new_feedback(
    inbox: str = "data/inbox",
    store: str = "data/feedback",
    targets: list[str] | None = None,
    parallel: Annotated[int, Field(ge=1)] = 1,
    timeout: Annotated[float, Field(gt=0)] | None = None,
) -> State[Any]:
    """Append new feedback to the store, put it under DVC, and bring the pipeline up to date.

    Rows that the store has already do not count; without new ones, nothing runs.

    Args:
        inbox: Directory where files of feedback arrive.
        store: Directory of dated batches; `data.path` in params.yaml should name it.
        targets: Stages to bring up to date; by default all.
        parallel: Stages that may run side by side.
        timeout: Seconds that a stage may take, unless dvc.yaml says otherwise.
    """
    from prlhf.project import feedback

    log = get_run_logger()
    commands = process.Commands()
    parents.watch(commands.stop, parents.workers())
    interrupted = PENDING.exists()
    try:
        write_text(PENDING, "")
        today = datetime.datetime.now(tz=datetime.UTC).date()
        appended = feedback.append(Path(inbox), Path(store), today=today)
        if appended.path is None and not interrupted:
            PENDING.unlink(missing_ok=True)
            return Completed(message=f"nothing new ({appended.known} rows are known)")
        if appended.path is None:
            log.info("an earlier run was interrupted: running the pipeline")
        else:
            log.info("%d new rows in %s", appended.rows, appended.path)
        feedback.track(Path(store))
        state = run(Path.cwd(), commands, targets=targets, parallel=parallel, timeout=timeout)
    except UserError as error:
        state = failed(error)
    except BaseException:
        # Prefect waits for the tasks before it lets a cancelled run end.
        commands.stop()
        raise
    PENDING.unlink(missing_ok=True)
    if not state.is_completed():
        return state
    return Completed(message=f"{appended.rows} new rows; {state.message}")

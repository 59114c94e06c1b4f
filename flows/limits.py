"""How many stages may use the GPU at once, over all runs of one Prefect server."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from prefect.client.base import ServerType
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_HOME

GPU = "gpu"
"""Tag of the task runs, and of the limit: `prefect concurrency-limit create gpu 2` raises it."""


@contextlib.contextmanager
def gpu_limit(client: SyncPrefectClient) -> Iterator[None]:
    """See to it that the limit exists; one that is there stays as it is.

    A server takes a killed run's slot back within about a minute. The server that Prefect starts
    for a run without one does not, since it ends with the run: here the slots are freed when no
    other such run is going on.
    """
    try:
        client.read_concurrency_limit_by_tag(GPU)
    except ObjectNotFound:
        client.create_concurrency_limit(tag=GPU, concurrency_limit=1)
    if client.server_type is not ServerType.EPHEMERAL:
        yield
        return
    # The system drops the lock with the process that holds it, however that ends.
    with (Path(PREFECT_HOME.value()) / "prlhf.lock").open("w") as lock:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Resetting the tag's limit would drop the leases and keep the slots.
            free = GlobalConcurrencyLimitUpdate(active_slots=0)
            client.update_global_concurrency_limit(f"tag:{GPU}", free)
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield

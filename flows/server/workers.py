"""Who runs what on a Prefect server: `find_deployment(client, "train/gpu")`, `advice(client, run, "train/gpu")`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, WorkQueue
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound

from stages.errors import UserError

__all__ = ["SILENCE_SECONDS", "advice", "find_deployment", "is_polled", "worker_command"]

# A run that has waited for so long is worth a word on why it does not start.
SILENCE_SECONDS = 30.0

# A worker asks for work every 10 s unless it is told otherwise.
POLLED_WITHIN = timedelta(seconds=40)


def find_deployment(client: SyncPrefectClient, name: str) -> DeploymentResponse:
    """The deployment `flow/name`.

    Raises:
        UserError: there is none, and what makes it.
    """
    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        raise UserError(
            f"there is no deployment {name} on the Prefect server at {client.api_url}: run `martlet setup` against it"
        ) from None


def worker_command(pool: str, queue: str) -> str:
    """What starts a worker for a queue."""
    return f"prefect worker start --pool {pool} --work-queue {queue}"


def is_polled(queue: WorkQueue) -> bool:
    """Whether a worker has asked this queue for work lately."""
    return queue.last_polled is not None and datetime.now(UTC) - queue.last_polled < POLLED_WITHIN


def advice(client: SyncPrefectClient, run: FlowRun, name: str) -> str:
    """One line on why a scheduled run of the deployment `name` is not started, with the command that helps."""
    pool, queue_name = run.work_pool_name or "martlet", run.work_queue_name or "default"
    try:
        queue = client.read_work_queue_by_name(queue_name, work_pool_name=pool)
    except ObjectNotFound:
        return f"{name} waits in the queue {queue_name} of the pool {pool}, which is gone: run `martlet setup`"
    if client.read_work_pool(pool).is_paused or queue.is_paused:
        return f"{name} waits: the queue {queue_name} of the pool {pool} is paused (resume it in the UI)"
    if not is_polled(queue):
        return f"no worker listens on the queue {queue_name}: {worker_command(pool, queue_name)}"
    if run.state is not None and run.state.name == "AwaitingConcurrencySlot":
        return f"{name} waits for a slot of the queue {queue_name}"
    limit: Any = queue.concurrency_limit
    taken = f", whose limit is {limit}" if limit else ", or its workers are full"
    return f"{name} waits behind other runs of the queue {queue_name}{taken}"

"""Runs a stage on a worker: starts its deployment (`train/gpu`), waits for it, and reads what it made from the store.

    dispatch = Dispatch(store, reporter, logger, stop_requested)
    run_stage(stage, arguments, inputs, store=store, elsewhere=dispatch)

Only digests and arguments go to the worker, and nothing comes back through Prefect: the worker needs no more than the
store's address. A worker that is lost (its process, container or machine) is `WorkerLost`, which the task's retries
answer with a new one; it goes on from the last checkpoint.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, State, StateType
from prefect.client.schemas.sorting import ArtifactSort
from prefect.context import FlowRunContext, TaskRunContext
from prefect.deployments import run_deployment
from prefect.states import Cancelling

from flows.server.workers import SILENCE_SECONDS, advice, find_deployment
from flows.states import shown
from stages.artifacts.store import Store
from stages.attempt import Logger
from stages.context import Reporter
from stages.errors import Interrupted, MartletError, StageFailed, UnknownReference, UserError, WrongWorker
from stages.registry import get_stage
from stages.request import Request
from stages.run import StageResult

__all__ = [
    "Dispatch",
    "WorkerFailed",
    "WorkerLost",
    "cancel_children",
    "check_asked",
    "check_deployments",
    "deployment_of",
]

POLL_SECONDS = 0.5
SECONDS_BETWEEN_ADVICE = 300.0
SECONDS_BETWEEN_PROGRESS = 2.0
# A child that was told to end saves a checkpoint first; its worker ends it after PREFECT_WORKER's own grace of 30 s.
GRACE_SECONDS = 60.0


class WorkerLost(StageFailed):
    """The worker's process, container or machine is gone; another one goes on from the last checkpoint."""


class WorkerFailed(StageFailed):
    """The stage broke down on its worker, which has tried it again itself."""


def deployment_of(stage: str) -> str:
    """The deployment of a stage by itself: `train/gpu`, `push-to-hub/cpu`."""
    return f"{stage.replace('_', '-')}/{get_stage(stage).need}"


def check_deployments(stages: Iterable[str]) -> None:
    """Says before the first stage runs that the server lacks the deployment of a later one.

    Raises:
        UserError: which, and what makes it.
    """
    with get_client(sync_client=True) as client:
        for stage in dict.fromkeys(stages):
            find_deployment(client, deployment_of(stage))


def check_asked(asked: Mapping[str, Any], store: Store) -> None:
    """Says on the worker what would only confuse later: another Python, or a store without the caller's artifacts.

    Raises:
        WrongWorker: what is here, and what was asked for.
    """
    there, here = asked["python"], platform.python_version()
    if there.split(".")[:2] != here.split(".")[:2]:
        raise WrongWorker(
            f"this worker runs Python {here}, the flow that asked for the stage {there}; the locks are for the latter: "
            "make the worker's image or environment anew"
        )
    for digest in asked["inputs"].values():
        try:
            store.tree(digest)
        except UnknownReference:
            raise WrongWorker(
                f"this worker's store {store.location} has no {digest[:19]}, which the flow's store {asked['store']} "
                "has: give both the same MARTLET_STORE"
            ) from None


def cancel_children(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:
    """A hook for flows: ends what their tasks have started on workers, should a task not have come to do it."""
    with get_client(sync_client=True) as client:
        children = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[flow_run.id]),
                state=FlowRunFilterState(
                    type=FlowRunFilterStateType(not_any_=[*TERMINAL_STATES, StateType.CANCELLING])
                ),
            )
        )
        for child in children:
            client.set_flow_run_state(child.id, Cancelling(message="the flow that asked for it was cancelled"))


def _parent() -> FlowRun:
    """The flow run whose task asks."""
    return cast(FlowRun, cast(FlowRunContext, FlowRunContext.get()).flow_run)


@dataclass
class Dispatch:
    """Stands behind `run_stage(…, elsewhere=…)`; called inside of a task, once for each of its tries.

    Attributes:
        store: where the result is read.
        reporter: gets the worker's progress.
        logger: gets where the stage runs, and why it does not start.
        stop_requested: this process was told to end, and so is the worker then.
        force: the worker runs the stage in spite of a hit.
    """

    store: Store
    reporter: Reporter
    logger: Logger
    stop_requested: Callable[[], bool] = lambda: False
    force: bool = False

    def __call__(self, request: Request) -> StageResult:
        """Computes a request on a worker.

        Raises:
            UserError: what the worker found wrong, or there is no such deployment.
            WorkerLost: the run crashed; try again.
            WorkerFailed: the stage failed on the worker.
            Interrupted: the flow was cancelled or told to end, and the worker with it.
        """
        with get_client(sync_client=True) as client:
            child = self._start(client, request)
            state = self._wait(client, child, request)
            return self._result(child, state, request)

    def _start(self, client: SyncPrefectClient, request: Request) -> FlowRun:
        name = deployment_of(request.stage.name)
        find_deployment(client, name)
        parent, task = _parent(), cast(TaskRunContext, TaskRunContext.get()).task_run
        tries = [parent.id, parent.run_count, task.id, task.run_count]
        parameters = {
            **request.arguments.model_dump(mode="json", exclude_defaults=True),
            "artifacts": {name: reference.digest for name, reference in request.inputs.items()},
            "force": self.force,
            "asked": {
                "body": request.body,
                "inputs": {name: reference.digest for name, reference in request.inputs.items()},
                "python": platform.python_version(),
                "store": self.store.location,
            },
        }
        child: FlowRun = run_deployment(  # type: ignore[assignment]
            name, parameters=parameters, timeout=0, idempotency_key="-".join(map(str, tries))
        )
        self.logger.info("%s: asked %s to run it (flow run %s)", request.stage.name, name, child.id)
        return child

    def _wait(self, client: SyncPrefectClient, child: FlowRun, request: Request) -> State[Any]:
        """Polls the worker's run and this flow's own, so that cancelling one cancels the other."""
        parent_id = _parent().id
        watch = _Watch(client, child, request.stage.name, self.logger)
        progress_at = time.monotonic()
        with shown(client, parent_id) as show:
            while True:
                run = client.read_flow_run(child.id)
                if run.state is not None and run.state.is_final():
                    return run.state
                parent = client.read_flow_run(parent_id).state
                if self.stop_requested() or (parent is not None and (parent.is_cancelling() or parent.is_cancelled())):
                    self._cancel(client, child, request)
                show(*watch.looks(run))
                now = time.monotonic()
                if run.state is not None and run.state.is_running() and now - progress_at > SECONDS_BETWEEN_PROGRESS:
                    progress_at = now
                    self._pass_progress_on(client, child.id)
                time.sleep(POLL_SECONDS)

    def _cancel(self, client: SyncPrefectClient, child: FlowRun, request: Request) -> None:
        """Tells the worker's run to end, waits until it has saved, and raises."""
        client.set_flow_run_state(child.id, Cancelling(message="the flow that asked for it was told to end"))
        self.logger.info("%s: told its worker to save and end", request.stage.name)
        end = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < end:
            state = client.read_flow_run(child.id).state
            if state is not None and state.is_final():
                break
            time.sleep(POLL_SECONDS)
        raise Interrupted(f"{request.stage.name} was stopped on its worker")

    def _pass_progress_on(self, client: SyncPrefectClient, child: UUID) -> None:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[child]), type=ArtifactFilterType(any_=["progress"])
            ),
            sort=ArtifactSort.UPDATED_DESC,
            limit=1,
        )
        if found and isinstance(found[0].data, int | float):
            self.reporter.progress(float(found[0].data), 100.0, found[0].description or "")

    def _result(self, child: FlowRun, state: State[Any], request: Request) -> StageResult:
        name, stage = deployment_of(request.stage.name), request.stage.name
        record = self._record(child.id)
        line: dict[str, Any] = next((line for line in record.get("stages", []) if line["stage"] == stage), {})
        if not state.is_completed():
            raise _failure(name, state, record)
        answer = self.store.action(request.key) if request.stage.cacheable else self.store.recorded(request.key)
        if answer is None:
            raise StageFailed(
                f"{name} has completed, but its result is not in {self.store.location}: "
                "the worker has another store. Give both the same MARTLET_STORE"
            )
        manifest = next((m for m in self.store.manifests(answer.artifact) if m.key == request.key), None)
        return StageResult(
            stage=stage,
            status=line.get("status", "ran"),
            key=request.key,
            artifact=answer.artifact,
            attachments=answer.attachments,
            seconds=answer.seconds,
            metrics=answer.metrics,
            inputs=request.inputs,
            peak_memory_bytes=manifest.peak_memory_bytes if manifest else None,
        )

    def _record(self, child: UUID) -> dict[str, Any]:
        """What the worker wrote of its run, if it could."""
        with suppress(UnknownReference):
            return self.store.run(str(child))
        return {}


def _failure(name: str, state: State[Any], record: dict[str, Any]) -> MartletError:
    """The worker's own words, as the kind of error that they were."""
    message = record.get("error") or (state.message or state.name or "no message").strip().splitlines()[0]
    if state.is_crashed():
        return WorkerLost(f"the worker that ran {name} was lost: {state.message or state.name}")
    if state.is_cancelled() or record.get("exit_code") == Interrupted.exit_code:
        return WorkerLost(f"{name} was stopped on its worker: {message}")
    if record.get("exit_code") == UserError.exit_code:
        return UserError(message)
    if not record and (wrong := message.partition(f"{WrongWorker.__name__}: ")[2]):
        return WrongWorker(wrong)  # its store is another one, where the record is not to be found
    return WorkerFailed(message if record.get("error") else f"{name} failed before its stage could start: {message}")


@dataclass
class _Watch:
    """Says where a run is, and, once it has waited for long, why it does not start."""

    client: SyncPrefectClient
    child: FlowRun
    stage: str
    logger: Logger
    since: float = 0.0
    said: float = 0.0
    running: bool = False

    def looks(self, run: FlowRun) -> tuple[str, str]:
        """A name and a message for the state of the flow that waits."""
        name = deployment_of(self.stage)
        now = time.monotonic()
        if run.state is not None and (run.state.is_running() or run.state.is_pending()):
            if run.state.is_running() and not self.running:
                self.running = True
                self.logger.info("%s: %s has started", self.stage, name)
            return "Running", f"{self.stage} runs on a worker"
        self.since = self.since or now
        if now - self.since < SILENCE_SECONDS:
            return "Running", f"{self.stage} waits for a worker"
        text = advice(self.client, run, name)
        if now - self.said > SECONDS_BETWEEN_ADVICE:
            self.said = now
            self.logger.warning("%s: %s", self.stage, text)
        return "AwaitingWorker", text

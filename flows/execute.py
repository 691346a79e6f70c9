"""Runs a pipeline inside a Prefect flow run: each call of the page becomes a task, each result a line of the record."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from prefect.client.schemas.objects import State
from prefect.context import get_run_context

from flows.output import OutputFolder
from flows.pipeline import Given, Pipeline, Step
from flows.plan import plan
from flows.record import RunRecord, StageRecord
from flows.tasks import Outcome, task_for
from stages.arguments.base import Arguments
from stages.artifacts.reference import ArtifactRef
from stages.artifacts.store import Store, open_store
from stages.errors import MartletError, StageFailed
from stages.registry import get_stage
from stages.run import StageResult

__all__ = ["execute"]


@dataclass
class TaskCall:
    """Stands behind a page's `call` and runs each stage as a task, one after the other."""

    arguments: Arguments
    record: RunRecord
    output: OutputFolder | None
    force: frozenset[str] = frozenset()
    # Prefect knows results by their address: one that is freed lends its address, and its arrows, to another object.
    _alive: list[State[Any]] = field(default_factory=list)

    def __call__(self, stage: str, *, label: str = "", **inputs: Step | Given | None) -> Step:
        """Runs a stage. Inputs are passed on as task states, which is what draws the arrows in the UI."""
        step = Step(stage, label)
        given = {name: value for name, value in inputs.items() if value is not None}
        arguments = self.arguments.for_stage(get_stage(stage).arguments)
        line = StageRecord(stage, label, status="failed", arguments=arguments.model_dump(mode="json"))
        line.inputs = {name: value.handle.artifact for name, value in given.items() if isinstance(value, Step)}
        self.record.stages.append(line)
        started = time.monotonic()
        passed = {name: _passed(value) for name, value in given.items()}
        forced = stage in self.force
        task = task_for(stage, step.title)
        state = cast(State[Any], task(stage, arguments, passed, step.title, force=forced, return_state=True))
        self._alive.append(state)
        line.seconds = time.monotonic() - started
        result = self._result(step, state)
        self._note(line, result)
        return Step(stage, label, Done(result.artifact, state))

    def skip(self, stage: str, reason: str, *, label: str = "") -> None:
        """Notes a stage that has nothing to do."""
        self.record.stages.append(StageRecord(stage, label, status="skipped", reason=reason))

    def _result(self, step: Step, state: State[Any]) -> StageResult:
        if state.is_completed():
            outcome: Outcome = state.result()
            return outcome.result
        error = state.result(raise_on_failure=False)
        self.record.stages[-1].reason = str(error)
        if isinstance(error, BaseException) and not isinstance(error, Exception):
            raise error
        if isinstance(error, MartletError):
            raise error
        raise StageFailed(f"{step.title} failed: {type(error).__name__}: {error}")

    def _note(self, line: StageRecord, result: StageResult) -> None:
        line.status, line.key, line.artifact = result.status, result.key, result.artifact
        line.attachments, line.seconds, line.metrics = result.attachments, result.seconds, dict(result.metrics)
        line.inputs = dict(result.inputs)
        if self.output is not None:
            place = self.output.place(line.stage, line.label, result.artifact, result.attachments, line.metrics)
            line.path = str(place) if place else None


@dataclass(frozen=True)
class Done:
    """What stands behind a step that has run: its artifact, and the state that carries it."""

    artifact: ArtifactRef
    state: State[Any]


def _passed(value: Step | Given) -> Any:
    return value.source if isinstance(value, Given) else value.handle.state


def execute(
    pipeline: Pipeline,
    arguments: Arguments,
    output: OutputFolder | None = None,
    *,
    force: frozenset[str] = frozenset(),
    given: Mapping[str, Any] | None = None,
) -> RunRecord:
    """Runs a page inside the current flow run and keeps the record in the store, also when a stage fails.

    Raises:
        MartletError: the first stage that failed; the record of the run is saved all the same.
    """
    store: Store = open_store()
    context = get_run_context()
    record = RunRecord(id=str(context.flow_run.id), flow=pipeline.name, arguments=dict(given or {}))  # type: ignore[union-attr]
    started = time.monotonic()
    try:
        plan(pipeline, arguments, store)
        pipeline.page(arguments, TaskCall(arguments, record, output, force))
    except MartletError as error:
        record.ok, record.error, record.exit_code = False, str(error), error.exit_code
        raise
    except BaseException as error:
        record.ok, record.error, record.exit_code = False, f"{type(error).__name__}: {error}", 1
        raise
    finally:
        record.seconds = time.monotonic() - started
        made = output.made if output else None
        record.output_dir = str(made.resolve()) if made else None
        store.save_run(record.to_store())
    return record

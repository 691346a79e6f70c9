"""Runs a pipeline inside a Prefect flow run: each call of the page becomes a task, each result a line of the record."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from prefect.client.schemas.objects import State
from prefect.context import get_run_context

from flows.cost import add_cost
from flows.dispatch import check_asked, check_deployments
from flows.output import OutputFolder
from flows.pipeline import Given, Known, Pipeline, Step
from flows.plan import plan
from flows.record import RunRecord, StageRecord
from flows.tasks import HERE, How, Outcome, task_for
from flows.ui import show_run
from flows.ui.naming import tag_run
from stages.arguments.base import Arguments
from stages.artifacts.reference import ArtifactRef
from stages.artifacts.store import Store, open_store
from stages.errors import MartletError, StageFailed
from stages.registry import get_stage
from stages.run import StageResult, plan_stage
from stages.stage import Stage

__all__ = ["execute"]


@dataclass
class TaskCall:
    """Stands behind a page's `call` and runs each stage as a task, one after the other."""

    arguments: Arguments
    record: RunRecord
    output: OutputFolder | None
    how: How = HERE
    # Prefect knows results by their address: one that is freed lends its address, and its arrows, to another object.
    _alive: list[State[Any]] = field(default_factory=list)

    def __call__(self, stage: str, *, label: str = "", **inputs: Step | Given | None) -> Step:
        """Runs a stage. Inputs are passed on as task states, which is what draws the arrows in the UI."""
        step = Step(stage, label)
        definition = get_stage(stage)
        arguments = self.arguments.for_stage(definition.arguments)
        line = StageRecord(stage, label, status="failed", arguments=arguments.model_dump(mode="json"))
        self.record.stages.append(line)
        given = {name: self._known(definition, name, value) for name, value in inputs.items() if value is not None}
        line.inputs = {n: v if isinstance(v, ArtifactRef) else v.handle.artifact for n, v in given.items()}
        started = time.monotonic()
        passed = {name: _passed(value) for name, value in given.items()}
        task = task_for(stage, step.title)
        state = cast(State[Any], task(stage, arguments, passed, step.title, self.how, return_state=True))
        self._alive.append(state)
        line.seconds = time.monotonic() - started
        if not state.is_completed():
            line.key = self._key(definition, arguments, line.inputs)
        result = self._result(step, state)
        self._note(line, result)
        return Step(stage, label, Done(result.artifact, state))

    def _known(self, stage: Stage[Any], name: str, value: Step | Given) -> Step | ArtifactRef:
        """A path that was given is taken in now, so that a rerun finds it as it was."""
        if isinstance(value, Step):
            return value
        if isinstance(value.source, ArtifactRef):
            return value.source
        return open_store().take_in(value.source, stage.inputs[name].kinds[0])

    def _key(self, stage: Stage[Any], arguments: Arguments, inputs: Mapping[str, ArtifactRef]) -> str | None:
        """The key of a stage that did not end well, if it has one."""
        with suppress(MartletError):
            return plan_stage(stage, arguments, inputs, store=open_store()).key
        return None

    def skip(self, stage: str, reason: str, *, label: str = "") -> None:
        """Notes a stage that has nothing to do."""
        self.record.stages.append(StageRecord(stage, label, status="skipped", reason=reason))

    def known(self, step: Step) -> Known:
        """What a stage has given, which it has by now."""
        outcome: Outcome = step.handle.state.result()
        return Known(outcome.result.artifact, outcome.result.metrics)

    def undecided(self, stage: str, reason: str, *, label: str = "") -> None:
        """Never: everything before has run."""
        raise AssertionError(f"{stage} is undecided in a run: {reason}")

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
            place = self._place(self.output, line)
            line.path = str(place.resolve()) if place else None

    def _place(self, output: OutputFolder, line: StageRecord) -> Path | None:
        assert line.artifact is not None, "a stage that is done has made something"
        try:
            return output.place(line.stage, line.label, line.artifact, line.attachments, line.metrics)
        except OSError as error:
            digest = line.artifact.digest[:19]
            line.status, line.reason = "failed", f"its result {digest} could not be put into --output_dir"
            raise StageFailed(f"--output_dir {output.root}: {error.strerror}; {digest} is in the store") from error


@dataclass(frozen=True)
class Done:
    """What stands behind a step that has run: its artifact, and the state that carries it."""

    artifact: ArtifactRef
    state: State[Any]


def _passed(value: Step | ArtifactRef) -> Any:
    return value if isinstance(value, ArtifactRef) else value.handle.state


def execute(
    pipeline: Pipeline,
    arguments: Arguments,
    output: OutputFolder | None = None,
    *,
    how: How = HERE,
    given: Mapping[str, Any] | None = None,
) -> RunRecord:
    """Runs a page inside the current flow run and keeps the record in the store, also when a stage fails.

    Raises:
        MartletError: the first stage that failed; the record of the run is saved all the same.
    """
    store: Store = open_store()
    context = get_run_context()
    record = RunRecord(id=str(context.flow_run.id), flow=pipeline.name, arguments=dict(given or {}))  # type: ignore[union-attr]
    tag_run(context.flow_run)  # type: ignore[union-attr, arg-type]
    started = time.monotonic()
    try:
        if how.asked:
            check_asked(how.asked, store)
        planned = plan(pipeline, arguments, store)
        if how.run_on == "workers":
            check_deployments(line.stage for line in planned if line.status not in ("cached", "skipped"))
        pipeline.page(arguments, TaskCall(arguments, record, output, how))
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
        add_cost(record, store)
        store.save_run(record.to_store())
        show_run(record, store)
    return record

"""What a run would do, stage by stage, and why; it runs nothing: `martlet plan configs/quickstart.yaml`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flows.pipeline import Given, Known, Pipeline, Step
from stages.arguments.base import Arguments
from stages.artifacts.reference import ArtifactRef
from stages.artifacts.store import Store
from stages.errors import StageFailed
from stages.registry import get_stage
from stages.run import PlannedStage, plan_stage
from stages.stage import Stage

__all__ = ["PlanLine", "Planner", "plan"]


@dataclass(frozen=True)
class PlanLine:
    """One stage of a plan. `status` is cached, run, resume, unknown or skipped."""

    stage: str
    label: str
    status: str
    reason: str
    key: str | None = None
    artifact: ArtifactRef | None = None

    def to_json(self) -> dict[str, Any]:
        """One entry of `stages` in `plan --json`."""
        return {
            "stage": self.stage,
            "label": self.label,
            "status": self.status,
            "reason": self.reason,
            "key": self.key,
            "artifact": self.artifact.to_json() if self.artifact else None,
        }


@dataclass
class Planner:
    """Stands behind a page's `call` and looks up instead of running."""

    arguments: Arguments
    store: Store
    lines: list[PlanLine] = field(default_factory=list)

    def __call__(self, stage: str, *, label: str = "", **inputs: Step | Given | None) -> Step:
        """Plans a stage: its key is known only if every input is."""
        given = {name: value for name, value in inputs.items() if value is not None}
        definition = get_stage(stage)
        arguments = self.arguments.for_stage(definition.arguments)
        waits = {
            name: step.handle for name, step in given.items() if isinstance(step, Step) and not step.handle.artifact
        }
        if waits:
            if definition.prepare is not None:
                definition.prepare(arguments)  # what is wrong with a later stage is said before an earlier one runs
            line = self._after(stage, label, waits)
        else:
            line = self._look_up(definition, arguments, label, given)
        self.lines.append(line)
        return Step(stage, label, line)

    def skip(self, stage: str, reason: str, *, label: str = "") -> None:
        """Notes a stage that has nothing to do."""
        self.lines.append(PlanLine(stage, label, "skipped", reason))

    def known(self, step: Step) -> Known | None:
        """What the store has of a stage, if it has its result."""
        line: PlanLine = step.handle
        record = self.store.recorded(line.key) if line.key and line.artifact else None
        return Known(record.artifact, record.metrics) if record else None

    def undecided(self, stage: str, reason: str, *, label: str = "") -> None:
        """Notes a stage that will run or not."""
        self.lines.append(PlanLine(stage, label, "unknown", reason))

    def _after(self, stage: str, label: str, waits: dict[str, PlanLine]) -> PlanLine:
        """A stage whose input will only be made: it runs, unless the input comes out as it was."""
        name, source = next(iter(waits.items()))
        if any(line.status == "unknown" for line in waits.values()):
            return PlanLine(
                stage, label, "unknown", f"its input {name} is made by {source.stage}, of which nothing is known"
            )
        return PlanLine(stage, label, "run", f"its input {name} is made by {source.stage}, which will run")

    def _look_up(
        self, definition: Stage[Any], arguments: Arguments, label: str, given: dict[str, Step | Given]
    ) -> PlanLine:
        stage = definition.name
        inputs = {name: _known(value) for name, value in given.items()}
        try:
            planned: PlannedStage = plan_stage(definition, arguments, inputs, store=self.store)
        except StageFailed as error:
            return PlanLine(stage, label, "unknown", str(error))
        return PlanLine(stage, label, planned.status, planned.reason, planned.key, planned.artifact)


def _known(value: Step | Given) -> Any:
    return value.source if isinstance(value, Given) else value.handle.artifact


def plan(pipeline: Pipeline, arguments: Arguments, store: Store) -> list[PlanLine]:
    """Walks the page and answers what each stage would do."""
    planner = Planner(arguments, store)
    pipeline.page(arguments, planner)
    return planner.lines

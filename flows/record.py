"""What a run did: the record that `--json`, the closing table, `martlet rerun` and the UI are all made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.artifacts.reference import ArtifactRef

__all__ = ["RunRecord", "StageRecord", "public"]

ONLY_STORED = {"id", "arguments", "exit_code", "attachments", "inputs"}


@dataclass
class StageRecord:
    """One stage of a run. `status` is ran, cached, resumed, skipped or failed.

    What it cost and what the cache saved are None until `flows.cost.add_cost` fills them in, and where it is not known.
    """

    stage: str
    label: str = ""
    status: str = "ran"
    key: str | None = None
    artifact: ArtifactRef | None = None
    attachments: str | None = None
    seconds: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, ArtifactRef] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    path: str | None = None
    reason: str | None = None
    gpu_hours: float | None = None
    cost: float | None = None
    saved_seconds: float | None = None
    saved_cost: float | None = None

    @property
    def title(self) -> str:
        """`evaluate (tuned)`."""
        return f"{self.stage} ({self.label})" if self.label else self.stage

    def to_json(self) -> dict[str, Any]:
        """One entry of `stages` in `--json`."""
        record: dict[str, Any] = {
            "stage": self.stage,
            "label": self.label,
            "status": self.status,
            "key": self.key,
            "artifact": self.artifact.to_json() if self.artifact else None,
            "seconds": round(self.seconds, 3),
            "metrics": self.metrics,
            "gpu_hours": _rounded(self.gpu_hours, 6),
            "cost": _rounded(self.cost, 6),
            "saved_seconds": _rounded(self.saved_seconds, 3),
        }
        if self.path:
            record["path"] = self.path
        if self.reason:
            record["reason"] = self.reason
        return record

    def to_store(self) -> dict[str, Any]:
        """The JSON form with all that a rerun needs."""
        inputs = {name: reference.to_json() for name, reference in self.inputs.items()}
        return {**self.to_json(), "attachments": self.attachments, "inputs": inputs, "arguments": self.arguments}


@dataclass
class RunRecord:
    """One run of a flow."""

    id: str
    flow: str
    arguments: dict[str, Any]
    output_dir: str | None = None
    ok: bool = True
    seconds: float = 0.0
    error: str | None = None
    exit_code: int = 0
    cost: dict[str, Any] | None = None
    stages: list[StageRecord] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints as the last line."""
        record: dict[str, Any] = {
            "flow": self.flow,
            "ok": self.ok,
            "run": self.id,
            "seconds": round(self.seconds, 3),
            "output_dir": self.output_dir,
            "cost": self.cost,
            "stages": [stage.to_json() for stage in self.stages],
        }
        if self.error:
            record["error"] = self.error
        return record

    def to_store(self) -> dict[str, Any]:
        """The form kept in the store."""
        stages = [stage.to_store() for stage in self.stages]
        facts = {"id": self.id, "arguments": self.arguments, "exit_code": self.exit_code, "stages": stages}
        return {**self.to_json(), **facts}


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def public(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What `--json` prints of a record that was kept in the store: all but what only a rerun needs."""
    stages = [{name: value for name, value in stage.items() if name not in ONLY_STORED} for stage in stored["stages"]]
    return {**{name: value for name, value in stored.items() if name not in ONLY_STORED}, "stages": stages}

"""The manifest of an artifact: what made it, from what, where, how long it took; and the record that answers a key.

Neither holds an environment variable, an argument that is kept out of keys (tokens among them), or a path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from stages.artifacts.reference import ArtifactRef

__all__ = ["FORMAT_VERSION", "ActionRecord", "Manifest"]

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """What is known of one run of a stage that made an artifact.

    Attributes:
        artifact: what it made.
        stage: who made it.
        key: the action key.
        body: what the key was made of: version, arguments, digests of what was read, libraries.
        inputs: the artifacts that it was given, as a whole.
        attachments: the digest of the tree of logs, curves and checkpoints kept beside it.
        metrics: what the stage measured.
        started: UTC, ISO 8601.
        ended: UTC, ISO 8601.
        seconds: spent in the stage's function.
        peak_memory_bytes: the most memory that was resident in the process meanwhile (see `machine.py`).
        resumed: whether it went on from an interrupted run.
        machine: host, processor, GPUs, Python, the commit of the code (see `machine.py`).
        format: of this record.
    """

    artifact: ArtifactRef
    stage: str
    key: str
    body: Mapping[str, Any]
    inputs: Mapping[str, ArtifactRef]
    attachments: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    started: str = ""
    ended: str = ""
    seconds: float = 0.0
    peak_memory_bytes: int | None = None
    resumed: bool = False
    machine: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """The record that is stored."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Manifest:
        """The inverse of `to_json`."""
        inputs = {name: ArtifactRef.from_json(ref) for name, ref in record["inputs"].items()}
        return cls(**{**record, "artifact": ArtifactRef.from_json(record["artifact"]), "inputs": inputs})


@dataclass(frozen=True)
class ActionRecord:
    """The answer to a key: written last, so that whatever it names is there.

    Attributes:
        key: the action key.
        stage: who answered.
        body: what the key was made of.
        artifact: the result.
        attachments: the digest of the tree kept beside it.
        metrics: what the stage measured.
        seconds: what it took.
        ended: UTC, ISO 8601.
        format: of this record.
    """

    key: str
    stage: str
    body: Mapping[str, Any]
    artifact: ArtifactRef
    attachments: str | None
    metrics: Mapping[str, Any]
    seconds: float
    ended: str
    format: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """The record that is stored."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ActionRecord:
        """The inverse of `to_json`."""
        return cls(**{**record, "artifact": ArtifactRef.from_json(record["artifact"])})

    @classmethod
    def of(cls, manifest: Manifest) -> ActionRecord:
        """The record that answers the key of a manifest."""
        return cls(
            key=manifest.key,
            stage=manifest.stage,
            body=manifest.body,
            artifact=manifest.artifact,
            attachments=manifest.attachments,
            metrics=manifest.metrics,
            seconds=manifest.seconds,
            ended=manifest.ended,
        )

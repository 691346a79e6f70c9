"""A reference to an artifact: all that ever passes through an orchestrator."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

__all__ = ["KINDS", "ArtifactRef", "Kind"]

Kind = Literal["files", "model", "adapter", "dataset", "tokens", "report", "predictions", "publication"]
"""`files` is what a user hands in, before a stage has looked at it; the rest is what stages make."""

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class ArtifactRef:
    """An artifact by its content.

    Attributes:
        kind: what a reader may expect inside.
        digest: `sha256:` and 64 hexadecimal digits, over the kind and the sorted (path, size, sha256) of every file.
        size: bytes of all files together.
    """

    kind: Kind
    digest: str
    size: int

    def to_json(self) -> dict[str, Any]:
        """The form in which references stand in records and in `--json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> ArtifactRef:
        """The inverse of `to_json`."""
        return cls(kind=record["kind"], digest=record["digest"], size=record["size"])

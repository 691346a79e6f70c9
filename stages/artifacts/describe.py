"""Artifacts in words and as plain records, for commands that list and show them: `list_artifacts(store)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.artifacts.hashing import in_threads
from stages.artifacts.reference import ArtifactRef

if TYPE_CHECKING:
    from stages.artifacts.store import Store

__all__ = ["describe_ref", "list_artifacts", "show_artifact", "size_text"]


def size_text(size: int) -> str:
    """Bytes with the unit that keeps the number short: 517 B, 4.2 MB, 269 MB."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def describe_ref(ref: ArtifactRef) -> str:
    """`adapter sha256:ab12cd34ef56 (4.2 MB)`."""
    return f"{ref.kind} {ref.digest[:19]} ({size_text(ref.size)})"


def list_artifacts(store: Store) -> list[dict[str, Any]]:
    """One record an artifact, newest first: what it is, what made it and when, or where it was taken in from."""
    records = in_threads(lambda ref: _record(store, ref), store.artifacts())
    return sorted(records, key=lambda record: str(record["made"]), reverse=True)


def _record(store: Store, ref: ArtifactRef) -> dict[str, Any]:
    manifests = store.manifests(ref)
    newest = manifests[0] if manifests else None
    return {
        **ref.to_json(),
        "stage": newest.stage if newest else None,
        "key": newest.key if newest else None,
        "made": newest.ended if newest else "",
        "seconds": newest.seconds if newest else None,
        "taken_in_from": store.taken_in_from(ref),
    }


def show_artifact(store: Store, ref: ArtifactRef) -> dict[str, Any]:
    """All that is known of an artifact: its files, its manifests (newest first), and whether it is whole."""
    tree = store.tree(ref)
    return {
        **ref.to_json(),
        "is_whole": store.is_whole(ref),
        "files": [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in tree.files],
        "manifests": [manifest.to_json() for manifest in store.manifests(ref)],
        "taken_in_from": store.taken_in_from(ref),
    }

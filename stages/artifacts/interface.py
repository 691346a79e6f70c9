"""What a store answers, whatever it is kept on: `def f(store: Store)`. `store.LocalStore` documents each call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

from stages.artifacts.disk import Place
from stages.artifacts.manifest import ActionRecord, Manifest
from stages.artifacts.reference import ArtifactRef, Kind
from stages.artifacts.tree import EVERYTHING, File, Tree

__all__ = ["Paths", "Reference", "Store"]

Paths = Path | Sequence[Path]
Reference = ArtifactRef | str


class Store(Protocol):
    """What run.py, the flows and the commands ask of a store; a remote one answers with a local one in front.

    Attributes:
        location: what `open_store` opens it by.
        place: the folder on this machine that holds scratch and what is checked out.
    """

    location: str
    place: Place

    def put(self, path: Path, kind: Kind, *, move: bool = False) -> ArtifactRef: ...  # noqa: D102 - see LocalStore
    def take_in(self, path: Paths, kind: Kind = "files") -> ArtifactRef: ...  # noqa: D102
    def peek(self, path: Paths, kind: Kind = "files") -> Tree: ...  # noqa: D102
    def tree(self, reference: Reference) -> Tree: ...  # noqa: D102
    def view_digest(self, reference: Reference, reads: Sequence[str]) -> str: ...  # noqa: D102
    def find(self, prefix: str) -> ArtifactRef: ...  # noqa: D102
    def check_out(self, reference: Reference, to: Path, reads: Sequence[str] = EVERYTHING) -> None: ...  # noqa: D102
    def copy_out(self, reference: Reference, to: Path, reads: Sequence[str] = EVERYTHING) -> None: ...  # noqa: D102
    def is_whole(self, reference: Reference) -> bool: ...  # noqa: D102
    def rehash(self, file: File) -> Literal["whole", "damaged", "missing"]: ...  # noqa: D102
    def action(self, key: str) -> ActionRecord | None: ...  # noqa: D102
    def recorded(self, key: str) -> ActionRecord | None: ...  # noqa: D102
    def actions_of(self, stage: str) -> Iterator[ActionRecord]: ...  # noqa: D102
    def commit(self, manifest: Manifest) -> ActionRecord: ...  # noqa: D102
    def artifacts(self) -> list[ArtifactRef]: ...  # noqa: D102
    def trees(self) -> list[str]: ...  # noqa: D102
    def manifests(self, reference: Reference) -> list[Manifest]: ...  # noqa: D102
    def taken_in_from(self, reference: Reference) -> list[str]: ...  # noqa: D102
    def lease(  # noqa: D102
        self,
        key: str,
        on_wait: Callable[[str], None] | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> AbstractContextManager[None]: ...
    def scratch(self, key: str) -> Path: ...  # noqa: D102
    def scratch_path(self, key: str) -> Path: ...  # noqa: D102
    def keep_work(  # noqa: D102
        self, key: str, checkpoints: Sequence[Path] | None = None, logs: Path | None = None
    ) -> None: ...
    def has_kept_work(self, key: str) -> bool: ...  # noqa: D102
    def discard_scratch(self, key: str) -> None: ...  # noqa: D102
    def work_folder(self) -> AbstractContextManager[Path]: ...  # noqa: D102
    def save_run(self, record: dict[str, Any]) -> None: ...  # noqa: D102
    def run(self, name: str) -> dict[str, Any]: ...  # noqa: D102
    def runs(self) -> list[dict[str, Any]]: ...  # noqa: D102

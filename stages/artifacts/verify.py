"""Is the store whole? Reads every byte again, on all cores: `verify(store)`, `verify(store, [ref])`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from stages.artifacts.hashing import on_all_cores
from stages.artifacts.tree import File, Tree
from stages.errors import CorruptArtifact, UnknownReference

if TYPE_CHECKING:
    from stages.artifacts.reference import ArtifactRef
    from stages.artifacts.store import Store

__all__ = ["Problem", "Verification", "verify"]


@dataclass(frozen=True)
class Problem:
    """A file of an artifact, or the list of its files (`path` is empty), that is not what it was.

    Attributes:
        artifact: the digest.
        path: the file.
        what: `damaged` or `missing`.
        sha256: the blob.
    """

    artifact: str
    path: str
    what: Literal["damaged", "missing"]
    sha256: str = ""

    def __str__(self) -> str:
        """One line."""
        return f"{self.what}: {self.artifact[:19]} {self.path or '(its list of files)'}"


@dataclass(frozen=True)
class Verification:
    """What was read, and what was wrong.

    Attributes:
        trees: artifacts and trees of attachments looked at.
        blobs: files read.
        bytes: read.
        problems: every file that is damaged or missing, in each artifact that has it.
    """

    trees: int
    blobs: int
    bytes: int
    problems: tuple[Problem, ...]

    def to_json(self) -> dict[str, Any]:
        """The form of `verify --json`."""
        return {"ok": not self.problems, **asdict(self)}


def verify(
    store: Store,
    references: Iterable[ArtifactRef] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Hashes every blob of the artifacts given, or of all; changes nothing.

    Args:
        store: which.
        references: which artifacts, with their own files only; None is every tree in the store.
        progress: told bytes done and bytes in all.
    """
    names = store.trees() if references is None else [ref.digest for ref in references]
    problems: list[Problem] = []
    trees: list[Tree] = []
    for name in names:
        try:
            trees.append(store.tree(name))
        except CorruptArtifact:
            problems.append(Problem(name, "", "damaged"))
        except UnknownReference:
            problems.append(Problem(name, "", "missing"))
    states = _states(store, trees, progress)
    problems += [
        Problem(tree.digest, file.path, state, file.sha256)
        for tree in trees
        for file in tree.files
        if (state := states[file.sha256]) != "whole"
    ]
    sizes = {file.sha256: file.size for tree in trees for file in tree.files}
    return Verification(len(names), len(sizes), sum(sizes.values()), tuple(problems))


def _states(
    store: Store, trees: list[Tree], progress: Callable[[int, int], None]
) -> dict[str, Literal["whole", "damaged", "missing"]]:
    files = {file.sha256: file for tree in trees for file in tree.files}
    largest_first = sorted(files.values(), key=lambda file: -file.size)
    total = sum(file.size for file in largest_first)
    done = 0
    telling = threading.Lock()

    def look_at(file: File) -> Literal["whole", "damaged", "missing"]:
        nonlocal done
        state = store.rehash(file)
        with telling:
            done += file.size
            progress(done, total)
        return state

    return dict(zip((file.sha256 for file in largest_first), on_all_cores(look_at, largest_first), strict=True))

"""A tree: an artifact's files by path, size and SHA-256, and its digests: `tree.view_digest(["*.json"])`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from stages.artifacts.hashing import canonical_json, digest_of_json
from stages.artifacts.reference import KINDS, ArtifactRef, Kind

__all__ = ["EVERYTHING", "File", "Tree", "matches"]

EVERYTHING: tuple[str, ...] = ("**",)


@dataclass(frozen=True)
class File:
    """One file: its path relative to the artifact's root (with `/`), bytes, and the SHA-256 that names its blob."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Tree:
    """The files of an artifact, sorted by path."""

    kind: Kind
    files: tuple[File, ...]

    @classmethod
    def of(cls, kind: Kind, files: Iterable[File]) -> Tree:
        """A tree with its files put in order."""
        return cls(kind, tuple(sorted(files, key=lambda file: file.path)))

    @cached_property
    def name(self) -> str:
        """64 hexadecimal digits: the SHA-256 of `to_bytes()`."""
        return digest_of_json(self._to_json())

    @property
    def digest(self) -> str:
        """`sha256:` and the name."""
        return f"sha256:{self.name}"

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)

    @property
    def ref(self) -> ArtifactRef:
        """The reference that is passed on."""
        return ArtifactRef(self.kind, self.digest, self.size)

    def select(self, reads: Sequence[str]) -> Tree:
        """The part whose paths match one of the globs."""
        if tuple(reads) == EVERYTHING:
            return self
        return Tree(self.kind, tuple(file for file in self.files if matches(file.path, reads)))

    def view_digest(self, reads: Sequence[str]) -> str:
        """The digest of that part: what enters a key. Of everything, it is the artifact's own."""
        return self.select(reads).digest

    def to_bytes(self) -> bytes:
        """The canonical JSON whose SHA-256 is the artifact's digest."""
        return canonical_json(self._to_json())

    def _to_json(self) -> dict[str, object]:
        files = [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in self.files]
        return {"kind": self.kind, "files": files}

    @classmethod
    def from_bytes(cls, data: bytes) -> Tree:
        """The inverse of `to_bytes`.

        Raises:
            ValueError: it is not a tree, or a path would lead out of the folder that it is checked out to.
        """
        try:
            record = json.loads(data)
            files = tuple(
                File(str(entry["path"]), int(entry["size"]), str(entry["sha256"])) for entry in record["files"]
            )
            kind = record["kind"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a tree: {error}") from error
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}")
        for file in files:
            if not is_safe(file.path) or not re.fullmatch("[0-9a-f]{64}", file.sha256):
                raise ValueError(f"unsafe entry {file.path!r}")
        return cls(kind, files)


def is_safe(path: str) -> bool:
    """Whether a relative path stays inside of its folder."""
    return bool(path) and not any(part in {"", ".", ".."} for part in path.split("/"))


def matches(path: str, globs: Sequence[str]) -> bool:
    """Whether a relative path matches one of the globs: `*` stays within one part, `**` is any number of parts."""
    return any(_pattern(glob).fullmatch(path) for glob in globs)


@lru_cache(maxsize=512)
def _pattern(glob: str) -> re.Pattern[str]:
    """A glob as a regular expression; a `**` part matches no part, or several."""
    parts = glob.split("/")
    pattern = ""
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if part == "**":
            pattern += ".*" if last else "(?:[^/]+/)*"
            continue
        pattern += re.sub(r"\\\*", "[^/]*", re.escape(part)).replace(r"\?", "[^/]")
        pattern += "" if last else "/"
    return re.compile(pattern, re.DOTALL)

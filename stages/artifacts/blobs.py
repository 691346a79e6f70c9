"""Blobs: the bytes of files by their SHA-256, read-only, and what is known of each so that a change is noticed."""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from stages.artifacts.disk import clone, sync_file, write_atomically
from stages.artifacts.hashing import copy_and_hash, hash_file, hash_own_file, in_threads, on_all_cores
from stages.artifacts.local_files import Found
from stages.artifacts.tree import File, Tree
from stages.artifacts.workspace import Workspace
from stages.errors import CorruptArtifact, StoreError, UserError

__all__ = ["Blobs"]

READ_ONLY = 0o444
LARGE_BYTES = 1024 * 1024
Stamp = tuple[int, int, int]  # size, modification time (ns), inode: hard links leave these three as they are

logger = logging.getLogger("martlet.store")


class Blobs:
    """The folders `blobs/`, `stats/` (a file for each tree: its blobs' stamps when last known whole), `quarantine/`."""

    def __init__(self, root: Path, workspace: Workspace) -> None:
        """`root` is the store's; `workspace` is where files are before they get their name."""
        self.root = root
        self.workspace = workspace

    def path(self, sha256: str) -> Path:
        """Where a blob is, or would be."""
        return self.root / "blobs" / sha256[:2] / sha256[2:]

    def add(self, files: Sequence[Found], *, move: bool) -> list[File]:
        """Takes in the bytes of files, on all cores.

        Args:
            files: what was found.
            move: take the files themselves, where that is possible, and not copies.

        Raises:
            UserError: a file cannot be read, or changed while it was.
        """
        order = sorted(range(len(files)), key=lambda index: -files[index].size)
        hashes = on_all_cores(lambda index: self._add(files[index], move=move), order)
        known = dict(zip(order, hashes, strict=True))
        return [File(file.name, file.size, known[index]) for index, file in enumerate(files)]

    def _add(self, file: Found, *, move: bool) -> str:
        if move:
            sha256 = hash_own_file(file.path) if file.own else hash_file(file.path)
            if self._is_blob(file.path, sha256) or (file.own and self._adopt(file.path, sha256)):
                return sha256
        copy = self.workspace.file()
        try:
            # A clone's pages are not in memory yet, the source's may be; whether it changed meanwhile is checked.
            cloned = file.size >= LARGE_BYTES and clone(file.path, copy)
            sha256 = hash_file(file.path) if cloned else copy_and_hash(file.path, copy)
            if not file.is_unchanged():
                raise UserError(f"{file.path} changed while it was read")
            self._adopt(copy, sha256)
        finally:
            copy.unlink(missing_ok=True)
        return sha256

    def _is_blob(self, file: Path, sha256: str) -> bool:
        """Whether a file is a link to the blob itself: a stage may pass an input on without copying it."""
        blob = self.path(sha256)
        return blob.exists() and blob.samefile(file)

    def _adopt(self, file: Path, sha256: str) -> bool:
        """Gives a file its name as a blob; False if it lies on another file system."""
        blob = self.path(sha256)
        if blob.exists():
            if self._hash(sha256) == sha256:
                file.unlink()
                return True
            self.quarantine(sha256)
        blob.parent.mkdir(parents=True, exist_ok=True)
        file.chmod(READ_ONLY)
        try:
            file.rename(blob)
        except OSError as error:
            if error.errno == errno.EXDEV:
                return False
            raise
        return True

    def lacks(self, file: File) -> bool:
        """Whether a blob is not here, or not of its size."""
        stamp = self._stamp(file.sha256)
        return stamp is None or stamp[0] != file.size

    def receive(self, tree: Tree, files: Sequence[File], bring: Callable[[File, Path], str]) -> None:
        """Takes in blobs of a tree from elsewhere.

        Args:
            tree: which.
            files: those of its files to bring.
            bring: fills a new file and answers the SHA-256 of what it wrote.

        Raises:
            CorruptArtifact: what was brought is not what the tree names.
        """

        def take(file: File) -> None:
            copy = self.workspace.file()
            try:
                if bring(file, copy) != file.sha256:
                    raise CorruptArtifact(
                        f"{file.path} of {tree.kind} {tree.digest[:19]} is not what it was when it was stored; "
                        "run the stage that makes it again"
                    )
                self._adopt(copy, file.sha256)
            finally:
                copy.unlink(missing_ok=True)

        distinct = {file.sha256: file for file in files}
        in_threads(take, sorted(distinct.values(), key=lambda file: -file.size))
        self._remember(tree, self._known(tree) | {sha256: self._stamp(sha256) for sha256 in distinct})

    def remember(self, tree: Tree) -> None:
        """Notes the stamps of a tree's blobs, which have just been seen to be whole."""
        self._remember(tree, {file.sha256: self._stamp(file.sha256) for file in tree.files})

    def _remember(self, tree: Tree, stamps: Mapping[str, Stamp | None]) -> None:
        write_atomically(self._stats(tree), json.dumps(stamps).encode(), self.workspace.path(), durable=False)

    def sync(self, tree: Tree) -> None:
        """Waits until a tree's bytes are on the disk."""
        blobs = {self.path(file.sha256) for file in tree.files}
        on_all_cores(sync_file, blobs)
        for folder in {blob.parent for blob in blobs}:
            sync_file(folder)

    def damaged(self, tree: Tree, files: Sequence[File] | None = None) -> list[File]:
        """The files of a tree whose blob is missing or is not what it was; those are put into quarantine.

        A blob with the stamp that it had when it was stored is taken for whole; any other is hashed again.

        Args:
            tree: which.
            files: those of its files to look at; all by default.
        """
        known = self._known(tree)
        doubtful = []
        bad = []
        for file in {file.sha256: file for file in (tree.files if files is None else files)}.values():
            stamp = self._stamp(file.sha256)
            if stamp is None or stamp[0] != file.size:
                bad.append(file)
            elif known.get(file.sha256) != stamp:
                doubtful.append(file)
        hashes = on_all_cores(lambda file: self._hash(file.sha256), doubtful)
        bad += [file for file, sha256 in zip(doubtful, hashes, strict=True) if sha256 != file.sha256]
        for file in bad:
            self.quarantine(file.sha256)
        if doubtful and not bad:
            known |= {file.sha256: self._stamp(file.sha256) for file in doubtful}
            try:
                self._remember(tree, known)
            except OSError as error:
                logger.debug("the stamps of %s are not kept: %s", tree.digest, error)
        return bad

    def _known(self, tree: Tree) -> dict[str, Stamp | None]:
        """The stamps of a tree's blobs when they were last known to be whole."""
        try:
            record = json.loads(self._stats(tree).read_bytes())
            return {sha256: (size, time_ns, inode) for sha256, (size, time_ns, inode) in record.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}  # the blobs are hashed again, no more

    def rehash(self, file: File) -> Literal["whole", "damaged", "missing"]:
        """Reads a blob again, whatever is known of it; moves nothing."""
        stamp = self._stamp(file.sha256)
        if stamp is None:
            return "missing"
        whole = stamp[0] == file.size and self._hash(file.sha256) == file.sha256
        return "whole" if whole else "damaged"

    def _hash(self, sha256: str) -> str:
        """What a blob hashes to now; nothing if the disk cannot read it."""
        try:
            return hash_file(self.path(sha256))
        except UserError as error:
            if isinstance(error.__cause__, PermissionError):
                raise StoreError(str(error)) from error
            logger.warning("%s", error)
            return ""

    def quarantine(self, sha256: str) -> None:
        """Puts a damaged blob out of the way, where it can be looked at; a missing one is only reported."""
        blob = self.path(sha256)
        if not blob.exists():
            logger.warning("blob %s is missing", sha256)
            return
        place = self.root / "quarantine" / f"{sha256}-{time.time_ns()}"
        place.parent.mkdir(exist_ok=True)
        blob.rename(place)
        logger.warning("blob %s is not what it was when it was stored; moved to %s", sha256, place)

    def _stats(self, tree: Tree) -> Path:
        return self.root / "stats" / f"{tree.name}.json"

    def _stamp(self, sha256: str) -> Stamp | None:
        try:
            status = os.stat(self.path(sha256))  # noqa: PTH116 - a Path.stat costs twice as much, and this is the hot one
        except FileNotFoundError:
            return None
        return status.st_size, status.st_mtime_ns, status.st_ino

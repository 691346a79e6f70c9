"""What a stage has done so far, kept in the bucket for a try on another host: `work.keep(checkpoint)`, `work.fetch()`.

Layout: `scratch/<key>/<sha256>` (a file's bytes) and `scratch/<key>/work.json` (which files, by path), which is
written last and as a whole, so that a checkpoint that was only begun to be uploaded does not count. A thread uploads;
a checkpoint that is followed by another before its turn is passed over.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.artifacts.disk import clone, link, remove_folder
from stages.artifacts.hashing import copy_and_hash, hash_file, in_threads
from stages.artifacts.objects import Objects
from stages.artifacts.tree import File, is_safe
from stages.artifacts.workspace import Workspace
from stages.errors import CorruptArtifact, MartletError, StoreError

__all__ = ["KeptWork"]

MARK = "kept.json"  # in the scratch folder: which state of the bucket it comes from, or has become
UPLOADS = 4

logger = logging.getLogger("martlet.store")


class KeptWork:
    """The work on one key. Hold its lease to write."""

    def __init__(self, objects: Objects, key: str, scratch: Path, workspace: Workspace) -> None:
        """Asks nothing of the server yet.

        Args:
            objects: the bucket.
            key: whose work.
            scratch: its folder on this machine.
            workspace: where files are until they are whole.
        """
        self.objects, self.key, self.scratch, self.workspace = objects, key, scratch, workspace
        self.folder = f"scratch/{key}"
        self._waiting: Path | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._ended = self._discarded = False
        self._hashes: dict[tuple[int, int, int], str] = {}  # of files seen before, by inode, size and time
        self._there: set[str] = set()
        self._tag: str | None = None

    # --- on the host that goes on ---

    def is_there(self) -> bool:
        """Whether the bucket has work to go on from."""
        return self.objects.tag(self._index) is not None

    def fetch(self) -> None:
        """Brings the scratch folder to the newest state known: its own, or the one that another host has kept.

        Its own is newer if it was the last that was kept. If what this host kept is gone, the work was ended elsewhere.
        What is damaged is passed over with a warning: the work is done again.

        Raises:
            StoreError: the server cannot be asked.
        """
        found = self.objects.get_tagged(self._index)
        mark = self._mark()
        if found is None:
            self._tag = None
            if mark is not None:
                remove_folder(self.scratch)
                self.scratch.mkdir(parents=True)
            return
        self._tag = found[1]
        try:
            self._fetch(found[0], mark)
        except CorruptArtifact as error:
            logger.warning("what another host has kept is passed over: %s", error)

    def _fetch(self, index: bytes, mark: str | None) -> None:
        try:
            record = json.loads(index)
            files = [File(str(entry["path"]), int(entry["size"]), str(entry["sha256"])) for entry in record["files"]]
            state, host = str(record["state"]), str(record["host"])
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptArtifact(f"the list of the kept work of {self.key[:12]} is damaged") from error
        if state != mark:
            self._replace_scratch(files)
            self._set_mark(state)
            logger.info("took over work of %s: %.1f MB", host, sum(file.size for file in files) / 1e6)
        self._there = {file.sha256 for file in files}

    def _replace_scratch(self, files: list[File]) -> None:
        with self.workspace.folder() as fresh:
            in_threads(lambda file: self._pull(file, fresh / file.path), files, UPLOADS)
            remove_folder(self.scratch)
            self.scratch.parent.mkdir(parents=True, exist_ok=True)
            fresh.rename(self.scratch)

    def _pull(self, file: File, to: Path) -> None:
        if not is_safe(file.path):
            raise CorruptArtifact(f"the kept work of {self.key[:12]} names an unsafe path {file.path!r}")
        to.parent.mkdir(parents=True, exist_ok=True)
        if self.objects.pull(f"{self.folder}/{file.sha256}", to) != (file.sha256, file.size):
            raise CorruptArtifact(f"{file.path} of the kept work of {self.key[:12]} is not what it was")

    # --- on the host that works ---

    def keep(self, checkpoints: Sequence[Path], logs: Path | None = None) -> None:
        """Uploads, in the background, folders of the scratch folder: those that going on from here needs, no more.

        Args:
            checkpoints: complete; the stage may remove them from now on, but must not write to their files.
            logs: a folder that is being written to, of which a copy is taken at once.
        """
        self._hand_over(checkpoints, [logs] if logs is not None else [])

    def keep_all(self) -> None:
        """Uploads the whole scratch folder, in the background, once the stage has ended without a result."""
        self._hand_over([path for path in self.scratch.iterdir() if path.name != MARK])

    def end(self) -> None:
        """Waits until what was handed over is in the bucket."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def discard(self) -> None:
        """Removes the work from the bucket: the index first."""
        self._discarded = True
        self.end()
        if self._tag is not None or self._thread is not None:
            self.objects.delete([self._index])
            self.objects.delete([entry.name for entry in self.objects.entries(self.folder)])
            self._tag = None

    def _hand_over(self, paths: Sequence[Path], growing: Sequence[Path] = ()) -> None:
        """Links the files into a folder of their own, for the thread to upload; copies those that still grow."""
        snapshot = self.workspace.file()
        for file in _files(paths):
            target = _beneath(snapshot, file.relative_to(self.scratch))
            if not link(file, target) and not clone(file, target):
                copy_and_hash(file, target)
        for file in _files(growing):
            shutil.copyfile(file, _beneath(snapshot, file.relative_to(self.scratch)))
        if not snapshot.exists():
            return
        with self._changed:
            if self._waiting is not None:
                remove_folder(self._waiting)
            self._waiting = snapshot
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._upload_all, name="martlet-checkpoints", daemon=True)
            self._thread.start()

    def _upload_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._ended)
                snapshot, self._waiting = self._waiting, None
            if snapshot is None:
                return
            try:
                if not self._discarded:
                    self._upload(snapshot)
            except (MartletError, OSError) as error:
                logger.warning("the work on %s could not be kept for other hosts: %s", self.key[:12], error)
            finally:
                remove_folder(snapshot)

    def _upload(self, snapshot: Path) -> None:
        found = [path for path in snapshot.rglob("*") if path.is_file()]
        files = {path: File(str(path.relative_to(snapshot)), path.stat().st_size, self._hash(path)) for path in found}
        missing = {file.sha256: path for path, file in files.items() if file.sha256 not in self._there}
        in_threads(lambda item: self._push(*item), missing.items(), UPLOADS)
        if self._discarded:
            return
        state = os.urandom(8).hex()
        record = {"state": state, "host": os.uname().nodename, "files": [asdict(file) for file in files.values()]}
        if not self._write_index(record):
            raise StoreError("another host has taken the work over")
        self._set_mark(state)
        names = {file.sha256 for file in files.values()}
        self.objects.delete([f"{self.folder}/{sha256}" for sha256 in self._there - names])
        self._there = names
        sent = sum(path.stat().st_size for path in missing.values())
        logger.debug("kept work on %s: %d files, %.1f MB sent", self.key[:12], len(files), sent / 1e6)

    def _push(self, sha256: str, path: Path) -> None:
        if not self._discarded:
            self.objects.push(f"{self.folder}/{sha256}", path, path.stat().st_size, over=True)

    def _write_index(self, record: Mapping[str, Any]) -> bool:
        data = json.dumps(record).encode()
        if self._tag is None:
            tag = self.objects.create(self._index, data)
        else:
            tag = self.objects.replace(self._index, data, self._tag)
        if tag is None:  # a write whose answer was lost is sent again, and then meets itself
            found = self.objects.get_tagged(self._index)
            tag = found[1] if found and found[0] == data else None
        self._tag = tag or self._tag
        return tag is not None

    def _hash(self, path: Path) -> str:
        status = path.stat()
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
        if stamp not in self._hashes:
            self._hashes[stamp] = hash_file(path)
        return self._hashes[stamp]

    @property
    def _index(self) -> str:
        return f"{self.folder}/work.json"

    def _mark(self) -> str | None:
        try:
            return str(json.loads((self.scratch / MARK).read_bytes())["state"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _set_mark(self, state: str) -> None:
        temporary = self.workspace.file()
        temporary.write_text(json.dumps({"state": state}))
        temporary.replace(self.scratch / MARK)


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        yield from [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def _beneath(folder: Path, name: Path) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    return folder / name

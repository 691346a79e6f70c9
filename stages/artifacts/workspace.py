"""Temporary folders in the store, swept once their process is gone: `with workspace.folder() as folder:`."""

from __future__ import annotations

import fcntl
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stages.artifacts.disk import remove_folder

__all__ = ["Workspace"]

LOCK = ".lock"
GRACE_SECONDS = 3600


class Workspace:
    """One folder of this process under `tmp/`, made when first asked for, removed with this object or at exit.

    It holds a locked file for as long as its process lives, on whatever host or in whatever container that is; a
    folder whose lock is free belongs to nobody.
    """

    def __init__(self, root: Path) -> None:
        """Nothing is made yet; `root` is the store's `tmp/`."""
        self.root = root
        self._own: Path | None = None
        self._process = 0
        self._making = threading.Lock()

    def path(self) -> Path:
        """This process's folder."""
        with self._making:
            if self._own is None or self._process != os.getpid():
                self._own, self._process = self._make(), os.getpid()
            return self._own

    def file(self) -> Path:
        """A path for a new file in it."""
        return self.path() / os.urandom(8).hex()

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A new empty folder in it, removed afterwards."""
        folder = self.file()
        folder.mkdir()
        try:
            yield folder
        finally:
            remove_folder(folder)

    def sweep(self) -> None:
        """Removes what dead processes left."""
        with suppress(FileNotFoundError), os.scandir(self.root) as entries:
            for entry in entries:
                with suppress(OSError):  # swept by another process at the same moment, or not ours to remove
                    self._sweep(Path(entry.path))

    def _make(self) -> Path:
        while True:
            folder = self.root / os.urandom(8).hex()
            folder.mkdir(parents=True)
            with suppress(OSError):  # a sweeping process saw it before it was locked
                lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if (folder / LOCK).exists():
                    weakref.finalize(self, _remove, folder, lock, os.getpid())
                    return folder
                os.close(lock)

    @staticmethod
    def _sweep(folder: Path) -> None:
        if not (folder / LOCK).exists():
            if time.time() - folder.stat().st_mtime > GRACE_SECONDS:
                remove_folder(folder)
            return
        lock = os.open(folder / LOCK, os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_folder(folder)
        finally:
            os.close(lock)


def _remove(folder: Path, lock: int, process: int) -> None:
    """Removes a folder and lets go of its lock, unless this is a child that was forked off its process."""
    if os.getpid() == process:
        with suppress(OSError):
            remove_folder(folder)
        os.close(lock)

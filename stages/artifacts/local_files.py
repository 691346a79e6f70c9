"""The files under a path that a user or a stage hands in, and what is already known of them: `scan(path)`."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.artifacts.hashing import digest_of_json
from stages.errors import UserError

__all__ = ["Found", "Known", "scan"]

# What version control, caches and file managers leave in a folder is not part of what the user hands in.
NOT_CONTENT = frozenset({".git", ".hg", ".svn", ".cache", "__pycache__", ".ipynb_checkpoints", ".DS_Store"})

# A file written within the clock's grain of its last look may have changed since without a new time.
SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class Found:
    """A file under the path handed in.

    Attributes:
        path: where it is.
        name: its path relative to the root, with `/`.
        size: bytes.
        stamp: modification time, change time (both ns) and inode, which tell whether it is the file once read.
        own: whether it has this one name only and was not reached through a symbolic link, so that it may be moved.
    """

    path: Path
    name: str
    size: int
    stamp: tuple[int, int, int]
    own: bool

    def is_unchanged(self) -> bool:
        """Whether the file on the disk still is the one that was found."""
        try:
            now = self.path.stat()
        except OSError:
            return False
        return (now.st_size, now.st_mtime_ns, now.st_ino) == (self.size, self.stamp[0], self.stamp[2])


def scan(path: Path | Sequence[Path], *, skip: frozenset[str] = frozenset()) -> list[Found]:
    """Every file under a path, or under several as `0/…`, `1/…`; symbolic links are followed.

    Raises:
        UserError: nothing there, no file in it, a link that leads nowhere or round in a circle, a device or a pipe.
    """
    if isinstance(path, Path):
        found = list(_files_of(path, "", skip))
    else:
        found = [file for index, one in enumerate(path) for file in _files_of(one, f"{index}/", skip)]
    if not found:
        places = path if isinstance(path, Path) else " ".join(map(str, path))
        raise UserError(f"{places} holds no file")
    return found


def _files_of(path: Path, prefix: str, skip: frozenset[str]) -> Iterator[Found]:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(path, prefix, skip, (path.resolve(),), linked=path.is_symlink())
        else:
            yield _found(path, prefix + path.name, status, linked=path.is_symlink())
    except FileNotFoundError as error:
        missing = Path(error.filename)
        if missing.is_symlink():
            raise UserError(f"{missing} is a link to {missing.readlink()}, which does not exist") from error
        raise UserError(f"{missing} does not exist") from error
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error


def _walk(
    folder: Path, prefix: str, skip: frozenset[str], parents: tuple[Path, ...], *, linked: bool
) -> Iterator[Found]:
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.name in skip:
            continue
        status = entry.stat()
        path = Path(entry.path)
        if not stat.S_ISDIR(status.st_mode):
            yield _found(path, prefix + entry.name, status, linked=linked or entry.is_symlink())
            continue
        real = path.resolve() if entry.is_symlink() else parents[-1] / entry.name
        if real in parents:
            raise UserError(f"{path} is a link to a folder that it is in itself")
        yield from _walk(path, f"{prefix}{entry.name}/", skip, (*parents, real), linked=linked or entry.is_symlink())


def _found(path: Path, name: str, status: os.stat_result, *, linked: bool) -> Found:
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is neither a file nor a folder")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{path!s:.200} has a name that is not UTF-8") from error
    stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return Found(path, name, status.st_size, stamp, own=status.st_nlink == 1 and not linked)


class Known:
    """What is known of the files under one path: the SHA-256 that each had when it was last read.

    A file is taken for the one that was read if size, modification time, change time and inode are the same.
    """

    def __init__(self, path: Path | Sequence[Path], folder: Path) -> None:
        """Reads the record of `path`, kept in `folder` (the store's `sources/`), if there is one."""
        places = [path] if isinstance(path, Path) else list(path)
        self.places = [str(place.absolute()) for place in places]
        self.record = folder / f"{digest_of_json(self.places)[:32]}.json"
        self._looked_ns = time.time_ns()
        self._files: dict[str, list[Any]] = {}
        try:
            self._files = json.loads(self.record.read_bytes())["files"]
        except (OSError, ValueError, KeyError, TypeError):
            return  # never seen, or not readable: the files are hashed

    def sha256(self, file: Found) -> str | None:
        """The SHA-256 of a file, if it was read before and has not changed since."""
        entry = self._files.get(file.name)
        if not entry or entry[:4] != [file.size, *file.stamp]:
            return None
        return str(entry[4])

    def to_json(self, files: Sequence[Found], hashes: Sequence[str]) -> dict[str, Any]:
        """The record to keep: files that changed just now are left out, as their time may not tell a second change."""
        settled = self._looked_ns - SETTLED_NS
        return {
            "paths": self.places,
            "files": {
                file.name: [file.size, *file.stamp, sha256]
                for file, sha256 in zip(files, hashes, strict=True)
                if max(file.stamp[:2]) < settled or self.sha256(file) == sha256
            },
        }

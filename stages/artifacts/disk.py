"""What the store asks of a file system: atomic writes, links, clones, sweeping, and errors that say what to do."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stages.errors import StoreError

__all__ = [
    "Place",
    "clone",
    "is_no_space",
    "link",
    "remove_folder",
    "store_errors",
    "sync_file",
    "write_all",
    "write_atomically",
]

NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
NO_PERMISSION = {errno.EROFS, errno.EACCES, errno.EPERM}
_FICLONE = 0x40049409  # ioctl of Linux: btrfs, XFS, bcachefs, overlay on them


def is_no_space(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is a full disk; libraries in Rust and C++ only say so in words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            return True
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@dataclass(frozen=True)
class Place:
    """A folder that is written to, for errors.

    Attributes:
        path: where it is.
        name: what it is.
        advice: how to choose another.
    """

    path: Path
    name: str
    advice: str


@contextmanager
def store_errors(place: Place) -> Iterator[None]:
    """Turns the operating system's errors into one line that says what is wrong with the place."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise no_space(place) from error
        if error.errno in NO_PERMISSION:
            reason = f"{error.strerror}; {place.advice} to a folder of yours"
            raise StoreError(f"cannot write to {place.name} {place.path}: {reason}") from error
        what = f"{error.strerror or error} ({error.filename or 'no file named'})"
        raise StoreError(f"{place.name} {place.path}: {what}") from error


def no_space(place: Place) -> StoreError:
    """The error for a full disk, with what is free."""
    free = shutil.disk_usage(place.path).free if place.path.exists() else 0
    return StoreError(
        f"no space left for {place.name} {place.path} ({free / 1e6:,.0f} MB free): free some, "
        f"or {place.advice} to another disk"
    )


def write_atomically(path: Path, data: bytes, scratch: Path, *, durable: bool = True) -> None:
    """Writes a small file so that it is there as a whole or not at all, also after kill -9 or a power cut.

    Args:
        path: its place.
        data: its content.
        scratch: a folder of this process on the same file system.
        durable: False where losing the file in a power cut costs nothing but time.
    """
    temporary = scratch / f"{path.name[:32]}.{os.urandom(6).hex()}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            write_all(descriptor, memoryview(data))
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_file(path.parent)


def write_all(descriptor: int, data: memoryview) -> None:
    """Writes every byte: a single write may take fewer, as on a disk that is nearly full."""
    while data:
        data = data[os.write(descriptor, data) :]


def sync_file(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def link(source: Path, target: Path) -> bool:
    """A hard link, where the file system and its owner allow one (Linux refuses links to other users' files)."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS}:
            return False
        raise
    return True


def clone(source: Path, target: Path) -> bool:
    """A copy that shares its blocks with the source until one of them is written to, where the file system has them."""
    reading = os.open(source, os.O_RDONLY)
    try:
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.ioctl(writing, _FICLONE, reading)
        except OSError:
            target.unlink()
            return False
        finally:
            os.close(writing)
    finally:
        os.close(reading)
    return True


def remove_folder(path: Path) -> None:
    """Removes a folder and all that is in it, read-only folders too; a folder that is not there is fine."""
    if path.is_symlink() or path.is_file():
        path.unlink()
        return
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except PermissionError:
        for folder, _, _ in os.walk(path):
            Path(folder).chmod(stat.S_IRWXU)
        shutil.rmtree(path)

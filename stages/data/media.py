"""Finds the images, videos and sounds that rows name, and keeps them beside the rows.

`MediaFinder(scratch).find(row, [folder])` makes their paths absolute, `MediaKeeper(out).keep(path)` copies a file to
`media/<sha256><suffix>` below the folder `out` and gives that name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from logging import Logger
from pathlib import Path
from typing import Any

from stages.data.media_types import HEAD_BYTES, media_type, read_data_uri
from stages.data.rows.columns import MEDIA
from stages.data.rows.values import RowError
from stages.errors import DataError

__all__ = ["MediaFinder", "MediaKeeper", "is_address"]

KNOWN_PATHS = 65_536
CHUNK_BYTES = 1 << 20
WORDS = {"images": "an image", "videos": "a video", "audios": "a sound"}


def is_address(medium: str) -> bool:
    """Whether it is fetched when it is needed; such media stay where they are."""
    return medium.startswith(("http://", "https://"))


class MediaFinder:
    """Looks at every file that a row names, once; what a row holds as bytes becomes a file too.

    Attributes:
        num_outside: files that were found elsewhere than below the first folder.
    """

    def __init__(self, scratch: Path) -> None:
        """
        Args:
            scratch: for what rows hold themselves; it is made when it is needed.
        """
        self._scratch = scratch
        self.num_outside = 0
        self._located = lru_cache(KNOWN_PATHS)(self._locate)

    def find(self, row: dict[str, Any], folders: Sequence[Path] = ()) -> None:
        """Replaces the row's media by absolute paths; web addresses are kept.

        Args:
            row: a standard row; it is changed.
            folders: where relative paths may start, the first that has the file; messages name the last.

        Raises:
            RowError: a file is missing, unreadable, or not of its kind.
        """
        for column in MEDIA:
            if column in row:
                row[column] = [
                    self._find(medium, f"{column.removesuffix('s')} {number}", column, tuple(folders))
                    for number, medium in enumerate(row[column], start=1)
                ]

    def _find(self, medium: str, what: str, column: str, folders: tuple[Path, ...]) -> str:
        if is_address(medium):
            return medium
        if medium.startswith("data:"):
            try:
                data = read_data_uri(medium)
            except ValueError as error:
                raise RowError(f"{what} is no data: URI in base64: {error}", "media") from None
            name = f"{medium[:32]}…"
            path = str(self._unpack(data))
            problem = _problem(Path(path), column)
        else:
            name = medium
            path, problem = self._located(medium.removeprefix("file://"), column, folders)
        if problem is not None:
            raise RowError(f"{what}, {name!r:.200}, {problem}", "media")
        return path

    def report(self, logger: Logger) -> None:
        """Says what the key of a result does not know of."""
        if self.num_outside:
            logger.info(
                "%d media files are not part of what was handed in: if only they change, this runs again with --force",
                self.num_outside,
            )

    def _locate(self, medium: str, column: str, folders: tuple[Path, ...]) -> tuple[str, str | None]:
        path, problem = _locate(medium, column, folders)
        self.num_outside += problem is None and not (folders and Path(path).is_relative_to(folders[0]))
        return path, problem

    def _unpack(self, data: bytes) -> Path:
        self._scratch.mkdir(parents=True, exist_ok=True)
        path = self._scratch / f"{hashlib.sha256(data).hexdigest()}{_suffix(data, '')}"
        if not path.exists():
            part = self._scratch / f"{os.getpid()}.part"  # another process may be unpacking the same
            part.write_bytes(data)
            part.replace(path)
        return path


class MediaKeeper:
    """Copies files into an artifact, each once, under the name of its content."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: the artifact's.
        """
        self._folder = folder
        self._kept = lru_cache(KNOWN_PATHS)(self._copy)

    def keep(self, medium: str) -> str:
        """The name inside of the artifact of what `MediaFinder` found; a web address stays one.

        Raises:
            DataError: the file can no longer be read.
        """
        return medium if is_address(medium) else self._kept(medium)

    def _copy(self, medium: str) -> str:
        target = self._folder / "media"
        target.mkdir(exist_ok=True)
        part = target / f"{os.getpid()}.part"
        digest = hashlib.sha256()
        head = b""
        try:
            with Path(medium).open("rb") as source, part.open("wb") as copy:
                while chunk := source.read(CHUNK_BYTES):
                    head = head or chunk[:HEAD_BYTES]
                    digest.update(chunk)
                    copy.write(chunk)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            raise DataError(f"{medium} can no longer be read: {error.strerror}") from error
        name = f"{digest.hexdigest()}{_suffix(head, Path(medium).suffix)}"
        part.replace(target / name)
        return f"media/{name}"


def _locate(medium: str, column: str, folders: tuple[Path, ...]) -> tuple[str, str | None]:
    """The absolute path, and what is wrong with it."""
    with suppress(RuntimeError, OSError, ValueError):
        path = Path(medium).expanduser()
        places = [path] if path.is_absolute() else [folder / path for folder in folders]
        found = next((place for place in places if place.exists()), None)
        if found is not None:
            return str(found.absolute()), _problem(found, column)
        if not path.is_absolute():
            return medium, f"is not there: looked in {folders[-1]}" if folders else "is relative to no known folder"
    return medium, "is not there"


def _problem(path: Path, column: str) -> str | None:
    """Why a file is not of the kind that belongs into the column."""
    try:
        if path.is_dir():
            return "is a folder"
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not head:
        return "is empty"
    if column == "images":
        return _image_problem(path, head)
    kind = media_type(head)
    if kind is None or (kind.column == "images" and kind.suffix != ".gif"):
        return f"is not {WORDS[column]}: it begins with {head[:8]!r}"
    return None


def _image_problem(path: Path, head: bytes) -> str | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.verify()
    except UnidentifiedImageError:
        kind = media_type(head)
        if kind is not None and kind.column == "images":
            return f"is a damaged image: it begins as {kind.suffix}, but cannot be read"
        return f"is not an image: it begins with {head[:8]!r}"
    except Image.DecompressionBombError as error:
        return f"is too large: {error}"
    except (OSError, SyntaxError, ValueError) as error:
        return f"is a damaged image: {error}"
    return None


def _suffix(head: bytes, given: str) -> str:
    kind = media_type(head)
    return kind.suffix if kind is not None else given.lower()

"""What media outside of a data file look like now: `media_state([(Path("rows.jsonl"), Path("pictures"))])`.

A data file by itself is in the key by its content; the pictures that its rows name lie beside it, and are looked at
only when the rows are read. So that a change is not missed, their sizes and times are in the key: a copy of the
same pictures makes preprocess run again, and leaves what follows cached, for a dataset is addressed by its content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["media_state"]

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".mp4", ".avi", ".mov", ".mkv", ".webm", ".wav", ".mp3", ".flac", ".ogg", ".m4a", ".opus"),
)
LONGEST_PATH = 1024


def media_state(files: Sequence[tuple[Path, Path]]) -> str | None:
    """A digest of the sizes and times of the media that rows name.

    Args:
        files: data files, each with the folder in which relative paths start.

    Returns:
        None if no row of the first thousand or so of any file names a medium. A file that cannot be read has none: what
        is wrong with it is said when its rows are read.
    """
    from stages.data.readers import read_batches
    from stages.errors import DataError

    digest, found = hashlib.sha256(), False
    for file, folder in files:
        try:
            for number, batch in enumerate(read_batches(file)):
                named = {path for _, row in batch.rows if isinstance(row, dict) for path in _media(row)}
                if not named and number == 0:
                    break
                for path in sorted(named):
                    found = True
                    digest.update(f"{path}\0{_looks(folder / Path(path).expanduser())}\n".encode())
        except DataError:
            continue
    return digest.hexdigest()[:32] if found else None


def _media(value: Any) -> Iterator[str]:
    """Whatever is written like the path of a picture, a video or a sound, wherever it stands."""
    if isinstance(value, str):
        is_path = len(value) < LONGEST_PATH and "://" not in value and not value.startswith("data:")
        if is_path and "\n" not in value and Path(value).suffix.lower() in SUFFIXES:
            yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _media(one)
    elif isinstance(value, list):
        for one in value:
            yield from _media(one)


def _looks(path: Path) -> str:
    try:
        facts = path.stat()
    except OSError:
        return "not there"
    return f"{facts.st_size} {facts.st_mtime_ns}"

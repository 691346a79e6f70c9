"""Puts files into another folder without copying their bytes where the file system allows: `link_tree(source, out)`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

__all__ = ["link_or_copy", "link_tree"]


def link_or_copy(source: Path, target: Path) -> None:
    """Gives a file a second name; a copy on another file system, or on one without hard links."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def link_tree(source: Path, target: Path) -> None:
    """All files below a folder, or one file, under a new name."""
    if source.is_file():
        link_or_copy(source, target)
        return
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        link_tree(path, target / path.name)

"""Files out of the store: links for a stage to read, copies or clones for a user to keep."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from stages.artifacts.disk import clone, link
from stages.artifacts.tree import Tree

__all__ = ["check_out", "copy_out"]

SMALL_BYTES = 1024 * 1024

logger = logging.getLogger("martlet.store")


def check_out(blob: Callable[[str], Path], tree: Tree, to: Path) -> None:
    """Fills the folder `to` with read-only hard links to a tree's blobs; copies where links are not possible."""
    copied = 0
    for file in tree.files:
        target = to / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not link(blob(file.sha256), target):
            shutil.copyfile(blob(file.sha256), target)
            target.chmod(0o444)
            copied += file.size
    to.mkdir(parents=True, exist_ok=True)
    if copied:
        logger.info(
            "copied %.1f MB to %s: its file system, or the owner of the store, allows no links", copied / 1e6, to
        )


def copy_out(blob: Callable[[str], Path], tree: Tree, to: Path) -> None:
    """Fills a user's folder: small files as copies, large ones as clones, read-only links, or copies, in this order."""
    to.mkdir(parents=True, exist_ok=True)
    for file in tree.files:
        target = to / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name[:80]}.{os.urandom(4).hex()}.part")
        try:
            _bring(blob(file.sha256), partial, small=file.size < SMALL_BYTES)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def _bring(source: Path, target: Path, *, small: bool) -> None:
    if not small:
        if clone(source, target):
            target.chmod(0o644)
            return
        if link(source, target):
            return
    shutil.copyfile(source, target)
    target.chmod(0o644)

"""Checkpoints in the scratch folder: only those that were written to the end count.

checkpoints = Checkpoints(scratch, limit=2)
checkpoints.sweep(); start = checkpoints.newest()
… the trainer writes checkpoints.path(20) …; checkpoints.finish(20)
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["PLACE", "STATE_FILES", "TUNER_FILES", "Checkpoints"]

MARKER = "complete"
PLACE = "place.json"
"""How far a stream of rows had been read."""
TUNER_FILES = ("tuner.json", "tuner.safetensors")
"""What a tuner knows beside weights."""
SHARED_FILES = ("optimizer.bin", "pytorch_model_fsdp.bin")
"""As accelerate writes what several processes share."""
STATE_FILES = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", PLACE, *TUNER_FILES, *SHARED_FILES)
"""What only going on from a checkpoint needs; the trainer reads pickles with `weights_only`, which runs no code."""
FOLDER = re.compile(r"checkpoint-(\d+)")
RANDOM_STATE = re.compile(r"rng_state_\d+\.pth")
"""As several processes write it, each its own."""


class Checkpoints:
    """The folders `checkpoint-<step>` of one run."""

    def __init__(
        self,
        folder: Path,
        limit: int | None = None,
        on_finish: Callable[[Sequence[Path]], None] = lambda paths: None,
    ) -> None:
        """Nothing is read yet.

        Args:
            folder: where they are.
            limit: how many are kept; None for all.
            on_finish: told all that are there, each time one was written to the end.
        """
        self.folder = folder
        self.limit = limit
        self.on_finish = on_finish

    def path(self, step: int) -> Path:
        """Where the checkpoint of `step` is, or is to be."""
        return self.folder / f"checkpoint-{step}"

    def complete(self) -> list[int]:
        """The steps of all that were written to the end, oldest first."""
        return sorted(step for step, path in self._found() if (path / MARKER).is_file())

    def newest(self) -> Path | None:
        """The last one that was written to the end."""
        steps = self.complete()
        return self.path(steps[-1]) if steps else None

    def sweep(self) -> None:
        """Removes what a run that was killed had only begun to write."""
        for _, path in self._found():
            if not (path / MARKER).is_file():
                shutil.rmtree(path)

    def begin(self, step: int) -> None:
        """Makes room for the checkpoint of `step`."""
        if self.path(step).exists():
            (self.path(step) / MARKER).unlink(missing_ok=True)
            shutil.rmtree(self.path(step))

    def finish(self, step: int, best: int | None = None) -> None:
        """Marks a checkpoint as written to the end, once it is on the disk, and removes the oldest beyond the limit.

        Args:
            step: the checkpoint.
            best: the checkpoint that is kept in any case.
        """
        path = self.path(step)
        for file in [path for path in path.rglob("*") if path.is_file()]:
            _sync(file)
        (path / MARKER).touch()
        _sync(path / MARKER)
        _sync(path)
        kept = self.complete()[-self.limit :] if self.limit else self.complete()
        for old in self.complete():
            if old not in kept and old != best:
                (self.path(old) / MARKER).unlink()  # first: a half-removed one must not count
                shutil.rmtree(self.path(old))
        self.on_finish([self.path(step) for step in self.complete()])

    def link_into(self, folder: Path, *, only_model: bool) -> None:
        """Puts every checkpoint into `folder`, as hard links where the file system allows.

        Args:
            folder: gets `checkpoint-<step>/`.
            only_model: leave out what only going on from it needs.
        """
        for step in self.complete():
            target = folder / f"checkpoint-{step}"
            if target.exists():  # of an earlier try
                shutil.rmtree(target)
            target.mkdir(parents=True)
            for file in self.path(step).iterdir():
                if file.is_file() and file.name != MARKER and not (only_model and _is_state(file.name)):
                    link(file, target / file.name)

    def link_model(self, checkpoint: Path, out: Path) -> None:
        """Puts the trained weights of a checkpoint, and what describes them, into `out`."""
        for file in checkpoint.iterdir():
            if file.is_file() and file.name not in (MARKER, "trainer_state.json") and not _is_state(file.name):
                link(file, out / file.name)

    def _found(self) -> list[tuple[int, Path]]:
        if not self.folder.is_dir():
            return []
        named = ((FOLDER.fullmatch(path.name), path) for path in self.folder.iterdir())
        return [(int(match[1]), path) for match, path in named if match]


def _is_state(name: str) -> bool:
    return name in STATE_FILES or RANDOM_STATE.fullmatch(name) is not None


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where there can be none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _sync(path: Path) -> None:
    """Waits until a file's, or a folder's, content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

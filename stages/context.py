"""What a stage may know of the world around it: folders, a logger, progress, secrets by name."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

__all__ = ["Context", "NullReporter", "Reporter"]


class Reporter(Protocol):
    """Where progress, metrics and pictures go while a stage runs: a terminal, or the Prefect UI."""

    def progress(self, done: float, total: float, text: str) -> None:
        """`done` of `total` units of work are finished; `text` says what is being done, with numbers."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Values measured at `step`, for a table or a curve that is updated while the stage runs."""

    def image(self, name: str, path: Path) -> None:
        """A PNG worth showing, such as the loss curve. `name` is lower-case with dashes; the newest one wins."""

    def markdown(self, name: str, text: str) -> None:
        """A report worth showing."""


class NullReporter:
    """Shows nothing."""

    def progress(self, done: float, total: float, text: str) -> None:
        """Shows nothing."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Shows nothing."""

    def image(self, name: str, path: Path) -> None:
        """Shows nothing."""

    def markdown(self, name: str, text: str) -> None:
        """Shows nothing."""


def _never() -> bool:
    return False


def _nothing(_checkpoints: Sequence[Path]) -> None:
    pass


@dataclass(frozen=True)
class Context:
    """Given to a stage by whoever runs it.

    Attributes:
        scratch: survives retries and restarts of the same key; removed once the stage is done.
        attachments: kept beside the artifact but not part of its digest: logs, curves, intermediate checkpoints.
        logger: facts with numbers.
        reporter: progress, metrics, pictures.
        checkpointed: to be told, each time a checkpoint is complete, which folders of `scratch` are needed to go on:
            all of them, and no more. They may be removed afterwards, but their files must not be written to.
        stop_requested: True once the run was told to end; a long stage then saves and raises `Interrupted`.
    """

    scratch: Path
    attachments: Path
    logger: logging.Logger = field(default_factory=lambda: logging.getLogger("martlet"))
    reporter: Reporter = field(default_factory=NullReporter)
    checkpointed: Callable[[Sequence[Path]], None] = _nothing
    stop_requested: Callable[[], bool] = _never

    def secret(self, name: str) -> str | None:
        """The secret called `name` (`HF_TOKEN`, `MODELSCOPE_API_TOKEN`), which never enters a key or a manifest."""
        return os.environ.get(name) or None

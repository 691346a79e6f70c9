"""What the Prefect UI shows of a stage: a moving progress bar, its metrics, its pictures and reports."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from stages.reporting import TerminalReporter
from stages.run import StageResult

__all__ = ["PrefectReporter", "show_result"]

SECONDS_BETWEEN_UPDATES = 2.0


def artifact_key(*parts: str) -> str:
    """Prefect's keys hold lower-case letters, digits and dashes only."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


def figure(value: Any) -> str:
    """A number as people write it: 1,234,567 and 1.6932, not sixteen digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


class PrefectReporter:
    """Sends what a stage reports to the UI and to the terminal.

    Progress goes out at most every two seconds; pictures and reports when the stage is done, for Prefect keeps every
    version of them.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.terminal = TerminalReporter(title)
        self._progress: UUID | None = None
        self._updated = 0.0
        self._images: dict[str, bytes] = {}
        self._reports: dict[str, str] = {}

    def progress(self, done: float, total: float, text: str) -> None:
        """Moves the bar."""
        self.terminal.progress(done, total, text)
        now = time.monotonic()
        if total <= 0 or (now - self._updated < SECONDS_BETWEEN_UPDATES and done < total):
            return
        self._updated = now
        percent = min(100.0, 100.0 * done / total)
        if self._progress is None:
            key = artifact_key(self.title, "progress")
            self._progress = cast(UUID, create_progress_artifact(progress=percent, key=key, description=text))
        else:
            update_progress_artifact(self._progress, progress=percent, description=text)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing: the stage draws the curve, and its progress line has the numbers."""

    def image(self, name: str, path: Path) -> None:
        """Keeps the newest picture of a name: its bytes, for the file moves into the store with the rest."""
        self._images[name] = path.read_bytes()

    def markdown(self, name: str, text: str) -> None:
        """Keeps the newest report of a name."""
        self._reports[name] = text

    def flush(self) -> None:
        """Sends pictures and reports, and takes the progress line away."""
        self.terminal.close()
        for name, picture in self._images.items():
            data = base64.b64encode(picture).decode()
            # Prefect's own image artifact prints the whole data: URL below the picture.
            create_markdown_artifact(f"![{name}](data:image/png;base64,{data})", key=artifact_key(self.title, name))
        for name, text in self._reports.items():
            create_markdown_artifact(text, key=artifact_key(self.title, name))
        self._images.clear()
        self._reports.clear()


def show_result(title: str, result: StageResult) -> None:
    """The table of a finished stage."""
    facts: dict[str, Any] = {
        "status": result.status,
        "seconds": round(result.seconds, 2),
        "artifact": f"{result.artifact.kind} {result.artifact.digest[:19]}",
        "bytes": result.artifact.size,
        **result.metrics,
    }
    table = [{"name": name, "value": figure(value)} for name, value in facts.items()]
    create_table_artifact(table, key=artifact_key(title, "metrics"), description=f"**{title}**: {result.status}")

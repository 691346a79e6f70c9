"""What the Prefect UI shows while a stage runs: a bar that moves, the curve so far; and at the end the stage's page."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from pathlib import Path

from flows.ui.board import Board
from flows.ui.stage import Seen, live_page, stage_page
from flows.ui.words import key_of
from stages.artifacts.store import open_store
from stages.reporting import TerminalReporter
from stages.run import StageResult

__all__ = ["PrefectReporter", "show_result"]

SECONDS_BEFORE_BAR = 1.0
SECONDS_BETWEEN_MOVES = 2.0
SECONDS_BETWEEN_PAGES = 30.0


class PrefectReporter:
    """Sends what a stage reports to the UI and to the terminal.

    A stage that is done at once gets no bar. The bar moves at most every two seconds, a page with a picture on it is
    renewed at most every thirty: the first one comes at once.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.terminal = TerminalReporter(title)
        self.board = Board()
        self._began = time.monotonic()
        self._moved = self._renewed = 0.0
        self._seen = Seen()

    def progress(self, done: float, total: float, text: str) -> None:
        """Moves the bar."""
        self.terminal.progress(done, total, text)
        now = time.monotonic()
        if total <= 0 or (now - self._moved < SECONDS_BETWEEN_MOVES and (done < total or not self._moved)):
            return
        if not self._moved and (now - self._began < SECONDS_BEFORE_BAR or done >= total):
            return
        self._moved = now
        self.board.show(key_of(self.title, "progress"), "progress", min(100.0, 100.0 * done / total), text)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Keeps the newest of each for the page."""
        self._seen.step = step
        self._seen.metrics.update(values)

    def image(self, name: str, path: Path) -> None:
        """Shows the newest picture of a name: its bytes, for the file moves into the store with the rest."""
        self._seen.pictures[name] = base64.b64encode(path.read_bytes()).decode()
        self._renew()

    def markdown(self, name: str, text: str) -> None:
        """Shows the newest report of a name."""
        self._seen.reports[name] = text
        self._renew()

    def _renew(self) -> None:
        now = time.monotonic()
        if self._renewed and now - self._renewed < SECONDS_BETWEEN_PAGES:
            self._seen.is_newer = True
            return
        self._renewed = now
        self._show_live()

    def _show_live(self) -> None:
        self._seen.is_newer = False
        self.board.show(key_of(self.title), "markdown", live_page(self.title, self._seen), f"{self.title} is running")

    def show_result(self, result: StageResult) -> None:
        """Puts the page of the finished stage in the place of what was shown while it ran."""
        self._seen.is_newer = False
        text, sentence = stage_page(self.title, result, open_store())
        self.board.show(key_of(self.title), "markdown", text, sentence)
        if self._moved:
            self.board.show(key_of(self.title, "progress"), "progress", 100.0, sentence)
        self.board.flush()

    def flush(self) -> None:
        """Takes the terminal's progress line away, and waits until the UI has what it was told."""
        self.terminal.close()
        if self._seen.is_newer:
            self._show_live()
        self.board.flush()


def show_result(title: str, result: StageResult) -> None:
    """The page of a stage that ran without a reporter of its own."""
    PrefectReporter(title).show_result(result)

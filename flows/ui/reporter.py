"""What the Prefect UI shows while a stage runs: a bar that moves, the curve so far; and at the end the stage's page."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from flows.ui.board import Board
from flows.ui.stage import Seen, live_page, stage_page
from flows.ui.words import key_of
from stages.artifacts.store import open_store
from stages.reporting import TerminalReporter
from stages.run import StageResult

__all__ = ["PrefectReporter"]

logger = logging.getLogger("martlet.ui")

SECONDS_BEFORE_ANYTHING = 1.0
SECONDS_BETWEEN_MOVES = 2.0
SECONDS_BETWEEN_PAGES = 30.0


class PrefectReporter:
    """Sends what a stage reports to the UI and to the terminal.

    A stage that is done at once gets no bar. The bar moves at most every two seconds; a page with a picture on it is
    renewed at most every thirty.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.terminal = TerminalReporter(title)
        self.board = Board()
        self._began = time.monotonic()
        self._moved = self._renewed = 0.0
        self._seen = Seen()
        self._text = ""

    def progress(self, done: float, total: float, text: str) -> None:
        """Moves the bar."""
        self.terminal.progress(done, total, text)
        self._text = text
        now = time.monotonic()
        if total <= 0 or (now - self._moved < SECONDS_BETWEEN_MOVES and (done < total or not self._moved)):
            return
        if not self._moved and (now - self._began < SECONDS_BEFORE_ANYTHING or done >= total):
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
        before = self._renewed + SECONDS_BETWEEN_PAGES if self._renewed else self._began + SECONDS_BEFORE_ANYTHING
        if now < before:
            self._seen.is_newer = True
            return
        self._renewed = now
        self._show_live()

    def _show_live(self) -> None:
        self._seen.is_newer = False
        self.board.show(key_of(self.title), "markdown", live_page(self._seen), self._text or "running")

    def show_result(self, result: StageResult) -> None:
        """Puts the page of the finished stage in the place of what was shown while it ran."""
        self._seen.is_newer = False
        try:
            text, sentence = stage_page(result, open_store())
        except Exception as error:  # the result is kept: what goes wrong here costs only a page
            logger.warning("%s cannot be shown: %s", self.title, error)
            return
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

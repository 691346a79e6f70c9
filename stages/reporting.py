"""Progress and log lines in a terminal: `reporter = TerminalReporter("train")`; plain lines where there is none."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

__all__ = ["TerminalReporter", "set_up_logging"]

BAR_WIDTH = 24
REDRAW_SECONDS = 0.1
PLAIN_SECONDS = 15.0
CLEAR = "\r\x1b[2K"


class Screen:
    """A stream whose last line may be a progress line, which other lines push down instead of cutting in two."""

    def __init__(self) -> None:
        """One for the process: there is one terminal."""
        self._lock = threading.RLock()
        self._shown = ""

    def line(self, stream: TextIO, text: str) -> None:
        """Writes a whole line above the progress line."""
        with self._lock:
            shown = self._shown
            self.erase(stream)
            stream.write(text + "\n")
            if shown:
                self.progress(stream, shown)
            stream.flush()

    def progress(self, stream: TextIO, text: str) -> None:
        """Replaces the progress line."""
        with self._lock:
            stream.write(CLEAR + text)
            stream.flush()
            self._shown = text

    def erase(self, stream: TextIO) -> None:
        """Takes the progress line away."""
        with self._lock:
            if self._shown:
                stream.write(CLEAR)
                stream.flush()
            self._shown = ""


SCREEN = Screen()


class TerminalReporter:
    """One line for a stage, redrawn in a terminal; elsewhere a plain line at the start, at the end and now and then."""

    def __init__(self, title: str, stream: TextIO | None = None) -> None:
        """Begins the clock.

        Args:
            title: the stage, as in `evaluate (tuned)`.
            stream: stderr by default.
        """
        self.title = title
        self.stream = stream or sys.stderr
        self.is_terminal = self.stream.isatty()
        self._began = time.monotonic()
        self._drawn = 0.0
        self._last = ""

    def progress(self, done: float, total: float, text: str) -> None:
        """Shows a bar, the time gone and, from the pace so far, the time left."""
        now = time.monotonic()
        pause = REDRAW_SECONDS if self.is_terminal else PLAIN_SECONDS
        if self._drawn and done < total and now - self._drawn < pause:
            return
        line = self._line(done, total, text, now - self._began)
        if line == self._last:
            return
        self._drawn, self._last = now, line
        if self.is_terminal:
            SCREEN.progress(self.stream, line)
        else:
            SCREEN.line(self.stream, line)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """The text of `progress` has the numbers that matter."""

    def image(self, name: str, path: Path) -> None:
        """A terminal shows no pictures."""

    def markdown(self, name: str, text: str) -> None:
        """Reports are in the artifact."""

    def close(self, text: str = "") -> None:
        """Ends the line: with a last one of `text`, if there is any."""
        if self.is_terminal:
            SCREEN.erase(self.stream)
        if text:
            SCREEN.line(self.stream, f"{self.title}: {text}")

    def _line(self, done: float, total: float, text: str, seconds: float) -> str:
        share = min(1.0, max(0.0, done / total)) if total > 0 else 0.0
        facts = [text, _clock(seconds) + _left(share, seconds)]
        if not self.is_terminal:
            return f"{self.title}: {share:4.0%} {', '.join(facts)}"
        filled = round(share * BAR_WIDTH)
        bar = "━" * filled + "─" * (BAR_WIDTH - filled)
        return _cut(f"{self.title} {bar} {share:4.0%}  {'  '.join(facts)}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _left(share: float, seconds: float) -> str:
    """The time that remains, once there is a pace to judge by."""
    if not 0.0 < share < 1.0 or seconds < 2.0:
        return ""
    return f", {_clock(seconds / share - seconds)} left"


def _cut(line: str) -> str:
    """No longer than the terminal is wide: a line that wraps cannot be redrawn."""
    import shutil

    width = shutil.get_terminal_size().columns - 1
    return line if len(line) <= width else line[: max(1, width - 1)] + "…"


class _ScreenHandler(logging.Handler):
    """Log records as lines above the progress line."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record."""
        try:
            SCREEN.line(sys.stderr, self.format(record))
        except Exception:
            self.handleError(record)


def set_up_logging(*, verbose: bool = False) -> None:
    """Martlet's own log lines on stderr, above the progress line; safe to repeat.

    Args:
        verbose: with debug lines, tracebacks of failed stages among them.
    """
    logger = logging.getLogger("martlet")
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False
    if not any(isinstance(handler, _ScreenHandler) for handler in logger.handlers):
        handler = _ScreenHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)

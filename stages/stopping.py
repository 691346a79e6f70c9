"""Ends a run in order: `with StopSignals() as stop: run_stage(…, stop_requested=stop.is_requested)`."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Self

__all__ = ["StopSignals"]

GRACE_SECONDS = 25.0

logger = logging.getLogger("martlet.stop")


class StopSignals:
    """The first SIGINT or SIGTERM asks the stage to save and end; a second one, or the end of the grace, ends it now.

    Ending now is a `KeyboardInterrupt` in the main thread. The store is whole whatever happens, and the scratch folder
    keeps what was done.
    """

    def __init__(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """Changes nothing yet.

        Args:
            grace_seconds: for stages that do not look, or take too long to save.
        """
        self.grace_seconds = grace_seconds
        self.received: signal.Signals | None = None
        self._timer: threading.Timer | None = None
        self._before: dict[signal.Signals, object] = {}

    def is_requested(self) -> bool:
        """Whether the run was told to end."""
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as shells have it: 130, 143."""
        return 128 + (self.received or signal.SIGINT)

    def __enter__(self) -> Self:
        """Takes over both signals; call it in the main thread."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives them back."""
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal itself has answered

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        self._timer = threading.Timer(self.grace_seconds, os.kill, (os.getpid(), number))
        self._timer.daemon = True
        self._timer.start()
        logger.info("%s: saving, then ending; once more ends at once", self.received.name)

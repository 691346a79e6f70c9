"""One of the processes that train together: `python -m stages.training.worker FOLDER`, started by torchrun.

See `launch.py`, which listens. The first process writes artifact, logs and checkpoints; the others warn and fail alone.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.child import MAX_MESSAGE_LENGTH, end_with_parent
from stages.context import Context, NullReporter
from stages.errors import Interrupted, MartletError
from stages.training import group
from stages.training.launch import ACKNOWLEDGED, JOB, PROGRESS, STOP, event_file

__all__ = ["main"]

PROGRESS_SECONDS = 0.1
POLL_SECONDS = 0.05
LINES_OF_TRACEBACK = 8


def main(folder: Path) -> int:
    """Trains; answers the exit code, which torchrun looks at."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    voice = Voice(folder, group.index())
    try:
        result = _train(json.loads((folder / JOB).read_text(encoding="utf-8")), voice)
    except Interrupted as stopped:
        voice.tell(interrupted=str(stopped))
    except Exception as error:
        traceback.print_exc()
        voice.fail(error)
        return 1
    else:
        if group.is_first():
            voice.tell(result=result)
    return 0


def _train(job: Mapping[str, Any], voice: Voice) -> dict[str, Any]:
    """The stage's own training, whose world is the parent."""
    import torch.distributed

    from stages.arguments import TrainArguments
    from stages.attempt import plain
    from stages.train import train_here

    arguments = TrainArguments.model_validate(job["arguments"])
    inputs = {name: Path(path) for name, path in job["inputs"].items()}
    try:
        metrics = train_here(arguments, inputs, Path(job["out"]), _context(job, voice))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return plain(metrics)


def _context(job: Mapping[str, Any], voice: Voice) -> Context:
    logger = logging.getLogger("martlet")
    logger.setLevel(logging.INFO if group.is_first() else logging.WARNING)
    logger.propagate = False
    logger.addHandler(_Handler(voice))
    quiet = Context(Path(job["scratch"]), Path(job["attachments"]), logger)
    if not group.is_first():
        return quiet
    return replace(
        quiet,
        reporter=_Reporter(voice),
        checkpointed=voice.hand_over,
        stop_requested=(voice.folder / STOP).exists,
    )


class Voice:
    """What a process says to its parent."""

    def __init__(self, folder: Path, index: int) -> None:
        self.folder, self.index = folder, index
        self._handed_over = 0

    def tell(self, **event: Any) -> None:
        """Adds a line to the events."""
        with event_file(self.folder, self.index).open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def fail(self, error: Exception) -> None:
        """Tells what broke, with the end of its traceback where it is none of ours."""
        lines = str(error).strip().splitlines() or ["no message"]
        message = str(error) if isinstance(error, MartletError) else lines[0][:MAX_MESSAGE_LENGTH]
        text = [] if isinstance(error, MartletError) else "".join(traceback.format_exception(error)).splitlines()
        self.tell(error=type(error).__name__, message=message, traceback=text[-LINES_OF_TRACEBACK:], time=time.time())

    def hand_over(self, checkpoints: Sequence[Path]) -> None:
        """Waits until the parent has done with checkpoints what is to be done: they may be removed afterwards."""
        self._handed_over += 1
        self.tell(checkpoints=list(map(str, checkpoints)), number=self._handed_over)
        answer = self.folder / f"{ACKNOWLEDGED}-{self._handed_over}"
        while not answer.exists():
            time.sleep(POLL_SECONDS)


class _Reporter(NullReporter):
    """Shows things where the parent does."""

    def __init__(self, voice: Voice) -> None:
        self.voice = voice
        self._shown = 0.0

    def progress(self, done: float, total: float, text: str) -> None:
        """The newest state alone, at most ten times a second."""
        now = time.monotonic()
        if done < total and now - self._shown < PROGRESS_SECONDS:
            return
        self._shown = now
        path = self.voice.folder / PROGRESS
        part = path.with_suffix(".part")
        part.write_text(json.dumps([done, total, text]), encoding="utf-8")
        part.replace(path)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Passed on."""
        self.voice.tell(metrics=dict(values), step=step)

    def image(self, name: str, path: Path) -> None:
        """Passed on, as a path."""
        self.voice.tell(image=name, path=str(path))


class _Handler(logging.Handler):
    """Log records as events."""

    def __init__(self, voice: Voice) -> None:
        super().__init__()
        self.voice = voice

    def emit(self, record: logging.LogRecord) -> None:
        """Tells one record."""
        try:
            self.voice.tell(log=record.getMessage(), level=record.levelno)
        except Exception:
            self.handleError(record)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

"""Runs part of a stage in a process of its own: `run_child(sys.executable, "stages.quantization.gptq_worker", [job])`.

For libraries that change the process they are loaded into, or that need another environment.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages import child, errors
from stages.errors import Interrupted, MartletError, StageFailed

__all__ = ["run_child"]

POLL_SECONDS = 0.25
GRACE_SECONDS = 10.0
KILLED_BY_MEMORY = (-9, 137)


def run_child(
    python: Path | str,
    target: str | Path,
    arguments: Sequence[str],
    *,
    log: Path,
    title: str,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
    stop_requested: Callable[[], bool] = lambda: False,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> None:
    """Runs `target` to its end.

    Args:
        python: the interpreter.
        target: a module of ours, or a file for an interpreter that does not have them.
        arguments: its command line.
        log: gets all that it prints.
        title: for errors: `GPTQModel`.
        on_event: gets what the child tells with `child.emit`.
        stop_requested: looked at several times a second; the child is then ended.
        environment: variables on top of our own.
        folder: where it works, and may leave files; our own working folder if None.

    Raises:
        MartletError: the child raised one: the same class, the same line.
        StageFailed: it ended otherwise; the last line of its log is quoted.
        Interrupted: it was told to stop.
    """
    reading, writing = os.pipe()
    variables = os.environ | {child.EVENTS: str(writing), "PYTHONUNBUFFERED": "1"} | dict(environment or {})
    command = [str(python), "-P", child.__file__, str(target), *arguments]
    if not str(target).endswith(".py"):
        variables["PYTHONPATH"] = _join(str(Path(child.__file__).parents[1]), variables.get("PYTHONPATH"))
    with log.open("ab") as output, os.fdopen(reading, "rb", buffering=0) as events:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=variables,
                cwd=folder,
                pass_fds=[writing],
            )
        finally:
            os.close(writing)
        try:
            failure = _listen(process, events, on_event, stop_requested)
            code = process.wait()
        finally:
            _end(process)
    if failure is not None:
        raise _raised(failure, title)
    if code:
        raise StageFailed(f"{title} ended with {_worded(code)}: {_last_line(log)}")


def _listen(
    process: subprocess.Popen[bytes],
    events: Any,
    on_event: Callable[[dict[str, Any]], None],
    stop_requested: Callable[[], bool],
) -> dict[str, Any] | None:
    """Reads events until the child closes its end; answers the error among them."""
    failure = None
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(events, selectors.EVENT_READ)
        while True:
            if stop_requested():
                raise Interrupted("stopped before it was done")
            ended = process.poll() is not None  # asked first: what it told before it ended is then in the pipe
            if not selector.select(0 if ended else POLL_SECONDS):
                if ended:  # and something that it started holds the pipe open
                    return failure
                continue
            data = events.read(65536)
            if not data:
                return failure
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                event = json.loads(line)
                if "error" in event:
                    failure = event
                else:
                    on_event(event)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leaves no process behind."""
    assert process.stdin is not None
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    process.stdin.close()


def _raised(failure: Mapping[str, str], title: str) -> MartletError:
    kind = getattr(errors, failure["error"], None)
    if isinstance(kind, type) and issubclass(kind, MartletError):
        return kind(failure["message"])
    return StageFailed(f"{title} failed: {failure['error']}: {failure['message']}")


def _worded(code: int) -> str:
    return "signal 9, as when memory runs out" if code in KILLED_BY_MEMORY else f"exit code {code}"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip()[:300] if lines else "it said nothing"


def _join(first: str, rest: str | None) -> str:
    return os.pathsep.join([first, rest] if rest else [first])

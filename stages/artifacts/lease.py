"""A lease on a key, so that two processes compute it once: `with lease(folder / key): …`."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.errors import Interrupted

__all__ = ["lease"]

FIRST_PAUSE_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 0.25


@contextmanager
def lease(
    path: Path,
    on_wait: Callable[[str], None] | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Holds the lock file `path`; the system frees it at once when its holder dies.

    Args:
        path: the lock file; made, and removed afterwards.
        on_wait: called once, with a text that names the holder, if another process or thread holds it.
        stop_requested: looked at while waiting.

    Raises:
        Interrupted: `stop_requested` became true while waiting.
    """
    descriptor = _try(path)
    pause = FIRST_PAUSE_SECONDS
    waiting = False
    while descriptor is None:
        if not waiting and on_wait is not None:
            on_wait(_holder(path))
        waiting = True
        if stop_requested():
            raise Interrupted("stopped while waiting for another run of the same stage")
        time.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)
        descriptor = _try(path)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode())
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is unlocked: who has it open already sees that it is gone
        os.close(descriptor)


def _try(path: Path) -> int | None:
    """The lock file, opened and locked, or None if it is held."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass  # held, or removed by its last holder between the opening and the locking
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _holder(path: Path) -> str:
    try:
        record = json.loads(path.read_bytes())
        return f"process {record['process']} on {record['host']}"
    except (OSError, ValueError, KeyError):
        return "another process"

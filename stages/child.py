"""The child's side of `processes.run_child`: runs a module or a file, and ends when its parent does.

Stands on the standard library alone: it also runs under interpreters that have nothing of Martlet's.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import threading
import traceback
from typing import Any

__all__ = ["EVENTS", "MAX_MESSAGE_LENGTH", "emit", "end_with_parent"]

EVENTS = "MARTLET_EVENTS"
MAX_MESSAGE_LENGTH = 400


def emit(**event: Any) -> None:
    """Tells the parent something, as one line of JSON."""
    if place := os.environ.get(EVENTS):
        os.write(int(place), (json.dumps(event) + "\n").encode())


def main() -> None:
    """`child.py TARGET ARGUMENT …`: TARGET is a module, or a file that ends in .py."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.argv = sys.argv[1:]
    try:
        if sys.argv[0].endswith(".py"):
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or ["no message"]
        emit(error=type(error).__name__, message=lines[0][:MAX_MESSAGE_LENGTH])
        sys.exit(1)


def end_with_parent() -> None:
    """The parent holds the other end of stdin: when it dies, however it dies, reading ends."""
    while os.read(0, 1024):
        pass
    os._exit(130)


if __name__ == "__main__":
    main()

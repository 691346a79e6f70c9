"""A server that does not answer must not hold up whoever shows something."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import logging, time
logging.basicConfig(level="WARNING", format="%(name)s: %(message)s")
from flows.ui.board import Board
board = Board()
began = time.monotonic()
for step in range(1000):
    board.show("train-progress", "progress", step / 10, f"step {step}")
shown = time.monotonic()
board.flush(0.5)
print(f"{shown - began:.3f} {time.monotonic() - shown:.3f}")
"""


def test_a_silent_server_costs_no_time(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        environment = {**os.environ, "PREFECT_API_URL": url, "PREFECT_HOME": str(tmp_path)}
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    showing, flushing = map(float, done.stdout.split())
    assert showing < 1.0, "a thousand calls, none of which waits"
    assert 0.4 < flushing < 5.0, "it waits as long as it was told to"
    assert "martlet.ui: the Prefect UI does not answer" in done.stderr

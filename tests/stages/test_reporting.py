"""The progress line: redrawn in a terminal, plain and rare elsewhere."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys

import pytest

from stages.reporting import TerminalReporter

REPORT = """
import logging, time
from stages.reporting import TerminalReporter, set_up_logging
set_up_logging()
reporter = TerminalReporter("train")
for step in range(1, 31):
    reporter.metrics(step, {"loss": 1.23456, "lr": 1e-4})
    reporter.progress(step, 30, f"step {step}/30 · loss 1.23")
    if step == 15:
        logging.getLogger("martlet.train").info("saved checkpoint-15")
    time.sleep(0.02)
reporter.close("ran in 0.6 s")
"""


def in_a_terminal(code: str) -> str:
    """What a process writes to a pseudo-terminal of 80 columns."""
    master, slave = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stderr=slave, env={**os.environ, "COLUMNS": "80"})
    os.close(slave)
    written = b""
    while True:
        try:
            data = os.read(master, 4096)
        except OSError:  # Linux: the other end is closed
            break
        if not data:
            break
        written += data
    os.close(master)
    assert process.wait() == 0
    return written.decode().replace("\r\n", "\n")


def on_screen(written: str) -> list[str]:
    """The lines that stand in the end: `CR ESC[2K` clears the last one."""
    lines = [""]
    for part in written.split("\n"):
        lines[-1] += part.split("\r\x1b[2K")[-1] if "\r\x1b[2K" in part else part
        lines.append("")
    return [line for line in lines if line]


def test_one_line_in_a_terminal() -> None:
    written = in_a_terminal(REPORT)
    assert on_screen(written) == ["saved checkpoint-15", "train: ran in 0.6 s"]
    drawn = [part for part in written.split("\r\x1b[2K") if part.startswith("train ")]
    assert 3 <= len(drawn) <= 12
    assert all(len(line.split("\n")[0]) < 80 for line in drawn)
    assert any("step 30/30 · loss 1.23  0:00" in line for line in drawn)


def test_plain_lines_elsewhere() -> None:
    stream = io.StringIO()
    reporter = TerminalReporter("train", stream)
    for step in range(1, 101):
        reporter.progress(step, 100, f"step {step}/100")
    reporter.progress(100, 100, "step 100/100")
    reporter.close()
    assert stream.getvalue().splitlines() == ["train:   1% step 1/100, 0:00", "train: 100% step 100/100, 0:00"]


@pytest.mark.parametrize(
    ("done", "total", "line"),
    [(0, 10, "x:   0% y, 0:00"), (5, 0, "x:   0% y, 0:00"), (11, 10, "x: 100% y, 0:00"), (1, 3, "x:  33% y, 0:00")],
)
def test_shares(done: float, total: float, line: str) -> None:
    stream = io.StringIO()
    TerminalReporter("x", stream).progress(done, total, "y")
    assert stream.getvalue() == line + "\n"

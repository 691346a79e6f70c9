"""From flags to checked arguments is quick, and loads nothing heavy."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

PROGRAM = """
import sys
from stages.arguments import SftThenExportArguments
from stages.arguments.command_line import parse
arguments = parse(["--model", "m", "--dataset", "d", "--lora_rank", "16"], SftThenExportArguments)
assert arguments.lora_rank == 16
heavy = {"torch", "transformers", "prefect", "numpy", "yaml", "datasets", "peft"} & set(sys.modules)
print(",".join(sorted(heavy)))
"""


def run() -> float:
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    assert result.stdout.strip() == ""
    return seconds


def test_start() -> None:
    # 0.25 s on an idle machine; the bound is for a busy one.
    assert statistics.median(run() for _ in range(3)) < 1.5

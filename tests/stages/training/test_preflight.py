"""A run that cannot fit is refused with figures and ways out; what is estimated is near what is then taken."""

from __future__ import annotations

import json
import logging
import os
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages.errors import ArgumentsError, Interrupted
from stages.training.memory import available_memory, memory_text
from tests.stages.training.lab import SHORT, Lab
from tests.stages.training.tokens import write_arrow


def write_rows(folder: Path, vocabulary: int, lengths: list[int]) -> Path:
    folder.mkdir(parents=True)
    generator = random.Random(0)
    ids = [[generator.randrange(vocabulary) for _ in range(length)] for length in lengths]
    labels = [[-100] * (length // 3) + row[length // 3 :] for row, length in zip(ids, lengths, strict=True)]
    write_arrow(folder / "train.arrow", {"input_ids": ids, "labels": labels})
    return folder


@pytest.fixture(scope="module")
def giant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of 550 thousand million weights; no more is read of a model before it is refused."""
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("giant")
    LlamaConfig(
        vocab_size=384, hidden_size=65536, intermediate_size=4 * 65536, num_hidden_layers=8, num_attention_heads=64
    ).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    tensor = {"dtype": "F32", "shape": [384, 65536], "data_offsets": [0, 384 * 65536 * 4]}
    head = json.dumps({"model.embed_tokens.weight": tensor}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + 384 * 65536 * 4)
    return folder


def test_what_cannot_fit_is_refused_with_three_ways_out(tmp_path: Path, giant: Path) -> None:
    lab = Lab(tmp_path, giant, write_rows(tmp_path / "tokens", 384, [64] * 8))
    with pytest.raises(ArgumentsError) as caught:
        lab.run(SHORT | {"train_type": "full", "save_strategy": "no"})
    line = str(caught.value)
    assert line.startswith("training needs about ")
    assert " of memory (weights " in line
    ways = line.partition("Ways out: ")[2].partition("; or go on")[0].split("), ")
    assert len(ways) == 3, line
    assert "`--train_type lora`" in line
    assert line.endswith("; or go on nevertheless: `--ignore_preflight true`")


def test_checkpoints_that_fill_the_disk_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    lab = Lab(tmp_path, tiny_model, write_rows(tmp_path / "tokens", 384, [16] * 8))
    endless = SHORT | {"train_type": "full", "max_steps": 10**10, "save_steps": 1}
    with pytest.raises(ArgumentsError, match=r"checkpoints of .*`--save_total_limit 1` \(.*`--save_strategy no`"):
        lab.run(endless)


def test_it_goes_on_if_told_to(tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    from stages.training.checkpoints import Checkpoints

    lab = Lab(tmp_path, tiny_model, write_rows(tmp_path / "tokens", 384, [16] * 8))
    endless = SHORT | {"train_type": "full", "max_steps": 10**10, "save_steps": 1, "ignore_preflight": True}
    with caplog.at_level(logging.WARNING), pytest.raises(Interrupted):
        lab.run(endless, stop_requested=lambda: True)
    assert "goes on with `--ignore_preflight true`, although training needs up to" in caplog.text
    assert Checkpoints(lab.scratch).newest() is not None  # it has begun


def test_both_figures_are_in_the_metrics(tmp_path: Path, tiny_model: Path) -> None:
    lab = Lab(tmp_path, tiny_model, write_rows(tmp_path / "tokens", 384, [16] * 8))
    lab.run(SHORT)
    assert lab.memory["estimated_memory_bytes"] > 10**6
    assert lab.memory.get("training_memory_bytes", 1) > 0


def test_a_cpu_has_memory() -> None:
    assert 0 < available_memory("cpu") < 2**50
    assert (memory_text(3_400_000_000), memory_text(12_000_000)) == ("3.4 GB", "12 MB")


MODELS: dict[str, tuple[str, dict[str, Any], list[int], dict[str, Any]]] = {
    "wide llama, full": (
        "LlamaConfig",
        {"vocab_size": 8000, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6},
        [128] * 8,
        {"train_type": "full"},
    ),
    "large vocabulary, qwen2, full in bfloat16": (
        "Qwen2Config",
        {"vocab_size": 64000, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 3},
        [96] * 8,
        {"train_type": "full", "torch_dtype": "bfloat16", "per_device_train_batch_size": 2},
    ),
    "long rows, llama, lora": (
        "LlamaConfig",
        {"vocab_size": 16000, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8},
        [512] * 8,
        {"train_type": "lora", "per_device_train_batch_size": 4},
    ),
}

SCRIPT = """
import json, sys
from pathlib import Path
import accelerate, datasets, peft, transformers
from transformers import AutoModelForCausalLM, Trainer
from tests.stages.training.lab import Lab
folder, model, tokens, arguments = sys.argv[1:]
lab = Lab(Path(folder), Path(model), Path(tokens))
lab.run(json.loads(arguments))
print(json.dumps(lab.memory))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, which says what a process takes")
@pytest.mark.parametrize("name", MODELS)
def test_it_is_within_a_quarter_of_what_is_taken(tmp_path: Path, name: str) -> None:
    """In a process of its own, whose allocator gives back what is freed, as it is told to where memory is short."""
    import torch
    import transformers

    kind, shape, lengths, more = MODELS[name]
    config = getattr(transformers, kind)(num_attention_heads=8, num_key_value_heads=4, **shape)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    rows = write_rows(tmp_path / "tokens", shape["vocab_size"], lengths)
    arguments = {"max_steps": 2, "logging_steps": 1, "save_strategy": "no", "report_to": ["none"]} | more
    given = [str(tmp_path / "run"), str(tmp_path / "model"), str(rows), json.dumps(arguments)]
    (tmp_path / "run").mkdir()
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(256 << 10)}
    done = subprocess.run([sys.executable, "-c", SCRIPT, *given], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    memory = json.loads(done.stdout.splitlines()[-1])
    assert memory["estimated_memory_bytes"] == pytest.approx(memory["training_memory_bytes"], rel=0.25)

"""Quantized folders open in transformers, answer nearly as before, and are the same bytes each time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages.arguments import QuantizeArguments
from stages.artifacts.store import LocalStore
from stages.context import Context
from stages.errors import ArgumentsError, DataError, Interrupted, ModelError
from stages.quantize import STAGE, quantize
from stages.run import run_stage
from tests.stages.training.tokens import write_arrow

GPTQ = {"quant_method": "gptq", "group_size": 32, "quant_seqlen": 64}


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokens artifact of 60 rows."""
    return write_tokens(tmp_path_factory.mktemp("tokens"))


def write_tokens(folder: Path, rows: int = 60) -> Path:
    import numpy as np

    generator = np.random.default_rng(0)
    ids = [generator.integers(3, 384, generator.integers(10, 40)).tolist() for _ in range(rows)]
    for name in ("train", "validation"):
        write_arrow(folder / f"{name}.arrow", {"input_ids": ids, "labels": ids})
    return folder


def run(tmp_path: Path, model: Path, tokens: Path | None = None, **arguments: Any) -> tuple[Path, dict[str, Any]]:
    folders = [tmp_path / name for name in ("out", "scratch", "attachments")]
    for folder in folders:
        folder.mkdir()
    inputs = {"model": model} | ({"tokens": tokens} if tokens else {})
    metrics = quantize(QuantizeArguments(**arguments), inputs, folders[0], Context(folders[1], folders[2]))
    return folders[0], metrics


def logits_of(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.tensor([[3, 14, 15, 92, 65]])).logits


def check_folder(out: Path, model: Path, bits: int) -> None:
    """A plain folder: the float model's files to the byte, other weights, nothing of this machine."""
    import torch

    names = {path.name for path in out.iterdir()}
    for path in model.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            assert (out / path.name).read_bytes() == path.read_bytes()
    assert names - {"quantize_config.json"} == {path.name for path in model.iterdir()}
    for path in out.glob("*.json"):
        assert "/tmp" not in path.read_text().replace("modelcloud", "")
    expected, found = logits_of(model), logits_of(out)
    tolerance = {8: 0.02, 4: 0.2, 3: 0.4, 2: 0.9}[bits]
    error = torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected)
    assert 0 < error < tolerance


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_makes_a_smaller_model_that_opens_and_generates(
    bits: int, tmp_path: Path, tiny_model: Path
) -> None:
    out, metrics = run(tmp_path, tiny_model, quant_method="bnb", quant_bits=bits)
    check_folder(out, tiny_model, bits)
    assert metrics["num_quantized_layers"] == 14
    assert metrics["size_before_bytes"] == (tiny_model / "model.safetensors").stat().st_size
    assert metrics["size_after_bytes"] == (out / "model.safetensors").stat().st_size
    assert metrics["size_ratio"] == round(metrics["size_after_bytes"] / metrics["size_before_bytes"], 4) < 1
    assert (metrics["method"], metrics["bits"]) == ("bnb", bits)
    assert generate(out) == generate(out) != []


def generate(folder: Path) -> list[int]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    made = model.generate(torch.tensor([[3, 14, 15]]), max_new_tokens=5, do_sample=False)
    return list(made[0, 3:].tolist())


def test_every_setting_of_bitsandbytes_is_in_the_config(tmp_path: Path, tiny_model: Path) -> None:
    settings = {
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "bfloat16",
    }
    out, _ = run(tmp_path, tiny_model, quant_method="bnb", quant_bits=4, torch_dtype="bfloat16", **settings)
    config = json.loads((out / "config.json").read_text())
    assert {name: config["quantization_config"][name] for name in settings} == settings
    assert config["dtype"] == "bfloat16"
    assert dtypes(out)["model.embed_tokens.weight"] == "BF16"
    assert dtypes(out)["model.layers.0.mlp.up_proj.weight"] == "BF16"  # the storage of packed bits


def dtypes(folder: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - it is no mapping


def test_a_qwen_with_biases_is_quantized_and_generates(tmp_path: Path) -> None:
    """On some processors, 4-bit layers with a bias take another path in bitsandbytes."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = tmp_path / "qwen"
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(model)
    out, metrics = run(tmp_path, model, quant_method="bnb", quant_bits=4)
    assert metrics["num_quantized_layers"] == 7
    assert len(generate(out)) == 5


def test_the_same_key_gives_the_same_digest(store: LocalStore, tiny_model: Path) -> None:
    arguments = QuantizeArguments(quant_method="bnb", quant_bits=4)
    first = run_stage(STAGE, arguments, {"model": tiny_model}, store=store)
    again = run_stage(STAGE, arguments, {"model": tiny_model}, store=store, force=True)
    assert (first.status, again.status) == ("ran", "ran")
    assert first.artifact == again.artifact
    assert first.artifact.kind == "model"
    assert run_stage(STAGE, arguments, {"model": tiny_model}, store=store).status == "cached"


def test_shards_are_no_larger_than_asked(tmp_path: Path, tiny_model: Path) -> None:
    out, _ = run(tmp_path, tiny_model, quant_method="bnb", quant_bits=8, max_shard_size="100KB")
    assert len(list(out.glob("model-*.safetensors"))) > 1
    assert (out / "model.safetensors.index.json").exists()
    logits_of(out)


def test_a_quantized_model_is_not_quantized_again(tmp_path: Path, tiny_model: Path) -> None:
    out, _ = run(tmp_path, tiny_model, quant_method="bnb", quant_bits=4)
    (tmp_path / "again").mkdir()
    with pytest.raises(ModelError, match="quantized already, by bitsandbytes: give the float model"):
        run(tmp_path / "again", out, quant_method="bnb", quant_bits=8)


@pytest.mark.parametrize(
    ("arguments", "with_tokens", "kind", "message"),
    [
        (
            {"quant_method": "bnb", "quant_bits": 4, "safe_serialization": False},
            False,
            ArgumentsError,
            "safetensors only",
        ),
        ({**GPTQ, "quant_bits": 4}, False, ArgumentsError, "gptq` needs rows to calibrate on"),
        ({**GPTQ, "quant_bits": 4, "group_size": 128}, True, ArgumentsError, "128` does not divide the 64 inputs of"),
        ({**GPTQ, "quant_bits": 4, "quant_seqlen": 256, "quant_n_samples": 2}, True, DataError, "2 rows have "),
    ],
)
def test_what_does_not_fit_is_refused_before_a_weight_is_read(
    arguments: dict[str, Any],
    with_tokens: bool,
    kind: type[Exception],
    message: str,
    tmp_path: Path,
    tiny_model: Path,
    tokens: Path,
) -> None:
    with pytest.raises(kind, match=message):
        run(tmp_path, tiny_model, tokens if with_tokens else None, **arguments)


@pytest.mark.parametrize("bits", [4, 8])
def test_where_only_the_bits_are_given_bitsandbytes_quantizes(bits: int) -> None:
    assert QuantizeArguments(quant_bits=bits).quant_method == "bnb"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quant_method": "bnb", "quant_bits": 3}, "choose from 4, 8"),
        ({"quant_method": "gptq", "quant_bits": 1}, "choose from 2, 3, 4, 8"),
        ({"quant_method": "bnb"}, "needs `--quant_bits`"),
        ({"quant_bits": 3}, "choose from 4, 8"),
        ({}, "needs `--quant_method`"),
    ],
)
def test_bits_that_a_method_does_not_have_are_refused_by_the_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(ArgumentsError, match=message):
        QuantizeArguments(**arguments)


def test_a_damaged_model_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in tiny_model.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    (model / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not a model")
    with pytest.raises(ModelError, match="is damaged"):
        run(tmp_path, model, quant_method="bnb", quant_bits=4)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_makes_a_model_that_opens(bits: int, tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    out, metrics = run(tmp_path, tiny_model, tokens, quant_bits=bits, **GPTQ)
    in_fresh_process(out, tiny_model, bits)
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config == json.loads((out / "quantize_config.json").read_text())
    assert (config["bits"], config["group_size"], config["quant_method"]) == (bits, 32, "gptq")
    assert metrics["num_quantized_layers"] == 14
    assert metrics["calibration_tokens"] % 64 == 0
    assert (tmp_path / "attachments" / "gptqmodel.log").stat().st_size
    assert (tmp_path / "attachments" / "gptq-layers.csv").read_text().count("\n") == 15


def in_fresh_process(out: Path, model: Path, bits: int) -> None:
    """GPTQModel changes the process that opens its models: the other tests are spared it."""
    code = (
        "import importlib.util, sys; from pathlib import Path\n"
        f"spec = importlib.util.spec_from_file_location('tests', {__file__!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        f"module.check_folder(Path({str(out)!r}), Path({str(model)!r}), {bits})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_gptq_gives_the_same_digest_and_leaves_this_process_alone(
    store: LocalStore, tiny_model: Path, tokens: Path
) -> None:
    before = set(sys.modules)
    results = [
        run_stage(
            STAGE,
            QuantizeArguments(quant_bits=4, **GPTQ),
            {"model": tiny_model, "tokens": tokens},
            store=store,
            force=True,
        )
        for _ in range(2)
    ]
    assert results[0].artifact == results[1].artifact
    assert not {name for name in set(sys.modules) - before if name.split(".")[0] in ("gptqmodel", "logbar", "optimum")}


@pytest.mark.slow
def test_gptq_in_whole_rows(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    out, _ = run(tmp_path, tiny_model, tokens, **(GPTQ | {"quant_bits": 4, "group_size": -1}))
    in_fresh_process(out, tiny_model, 4)


@pytest.mark.slow
def test_told_to_stop_gptq_stops_and_begins_anew(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    for name in ("out", "scratch", "attachments"):
        (tmp_path / name).mkdir()
    context = Context(tmp_path / "scratch", tmp_path / "attachments", stop_requested=lambda: True)
    arguments = QuantizeArguments(quant_bits=4, **GPTQ)
    with pytest.raises(Interrupted):
        quantize(arguments, {"model": tiny_model, "tokens": tokens}, tmp_path / "out", context)
    assert list((tmp_path / "out").iterdir()) == []
    context = Context(tmp_path / "scratch", tmp_path / "attachments")
    quantize(arguments, {"model": tiny_model, "tokens": tokens}, tmp_path / "out", context)
    assert (tmp_path / "out" / "model.safetensors").exists()

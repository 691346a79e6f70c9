"""Models open whole, or with one line that says why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stages.errors import MissingPackage, ModelError
from stages.serving.loading import check_device, load_model, load_tokenizer, quantization_of


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_on_a_cpu_weights_are_float32_unless_asked(model: Path) -> None:
    change_config(model, dtype="bfloat16")
    assert str(load_model(model, device_map="cpu").dtype) == "torch.float32"
    assert str(load_model(model, device_map="cpu", torch_dtype="bfloat16").dtype) == "torch.bfloat16"


def test_the_attention_kernel_is_the_one_asked_for(model: Path) -> None:
    assert load_model(model, attn_impl="eager").config._attn_implementation == "eager"


def test_a_model_that_sees_opens_as_one(tiny_qwen2_vl: Path) -> None:
    assert type(load_model(tiny_qwen2_vl)).__name__ == "Qwen2VLForConditionalGeneration"


def test_a_layer_without_weights_is_not_made_up(model: Path) -> None:
    change_config(model, num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"lack weights that its config.json asks for: model.layers.2.*and 6 more"):
        load_model(model)


def test_weights_of_another_shape_are_refused(model: Path) -> None:
    change_config(model, intermediate_size=256)
    with pytest.raises(ModelError, match="the model cannot be opened"):
        load_model(model)


def test_a_damaged_file_is_refused(model: Path) -> None:
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(ModelError, match="is damaged"):
        load_model(model)


def test_a_tokenizer_that_is_missing_is_refused(model: Path) -> None:
    for path in model.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match="the model's tokenizer cannot be opened"):
        load_tokenizer(model)


def test_what_a_model_is_quantized_by(model: Path) -> None:
    assert quantization_of(model) is None
    change_config(model, quantization_config={"quant_method": "gptq"})
    assert quantization_of(model) == "gptq"


@pytest.mark.parametrize("device", ["cuda:97", {"model": "cpu", "lm_head": 97}])
def test_a_device_that_is_not_here_is_refused(device: Any) -> None:
    with pytest.raises(MissingPackage, match="CUDA devices"):
        check_device(device)

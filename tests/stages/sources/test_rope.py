from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from stages.errors import ModelError
from stages.sources.rope import max_positions, stretch_positions


def write(folder: Path, **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return folder


@pytest.mark.parametrize(
    ("config", "kind", "max_length", "scaling", "reach"),
    [
        (
            {"max_position_embeddings": 100, "rope_theta": 1e4},
            "linear",
            250,
            {"rope_type": "linear", "factor": 3.0},
            300,
        ),
        (
            {"max_position_embeddings": 100, "rope_theta": 1e4},
            "dynamic",
            90,
            {"rope_type": "dynamic", "factor": 1.0},
            100,
        ),
        (
            {"max_position_embeddings": 100, "rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 8}},
            "dynamic",
            250,
            {"rope_type": "dynamic", "factor": 8.0},
            800,
        ),
        (
            {"max_position_embeddings": 64, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
            "linear",
            65,
            {"rope_theta": 5.0, "rope_type": "linear", "factor": 2.0},
            128,
        ),
    ],
)
def test_positions_reach_max_length(
    tmp_path: Path, config: dict[str, Any], kind: str, max_length: int, scaling: dict[str, Any], reach: int
) -> None:
    assert stretch_positions(write(tmp_path, **config), kind, max_length) == scaling["factor"]
    after = json.loads((tmp_path / "config.json").read_text())
    assert after.get("rope_parameters", after.get("rope_scaling")) == scaling
    assert after["max_position_embeddings"] == config["max_position_embeddings"]
    assert max_positions(after) == reach


def test_the_users_own_file_stays(tmp_path: Path) -> None:
    own = write(tmp_path, max_position_embeddings=100, rope_theta=1e4) / "config.json"
    (tmp_path / "out").mkdir()
    os.link(own, tmp_path / "out" / "config.json")
    before = own.read_text()
    stretch_positions(tmp_path / "out", "linear", 400)
    assert own.read_text() == before


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "gpt2", "n_positions": 1024}, "the model (gpt2) has no rotary positions"),
        (
            {"max_position_embeddings": 9, "rope_parameters": {"full_attention": {"rope_theta": 1.0}}},
            "the model has different rotary positions in different layers",
        ),
    ],
)
def test_what_cannot_be_stretched(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError) as caught:
        stretch_positions(write(tmp_path, **config), "linear", 4096)
    assert str(caught.value) == f"`--rope_scaling linear`: {said}"


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_transformers_takes_it_and_positions_are_scaled(tmp_path: Path, tiny_model: Path, kind: str) -> None:
    """Linear: position 2p looks as p did. Dynamic: nothing changes up to the length that was trained."""
    import shutil

    import torch
    from transformers import AutoModelForCausalLM

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    before = AutoModelForCausalLM.from_pretrained(folder)
    limit = before.config.max_position_embeddings
    assert stretch_positions(folder, kind, 2 * limit) == 2.0
    after = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(1, 9)[None]
    positions = torch.arange(8)[None]
    # With a mask, or positions that do not follow each other would be taken for the borders of packed rows.
    given = {"attention_mask": torch.ones_like(ids), "use_cache": False}
    with torch.no_grad():
        one = before(ids, position_ids=positions, **given).logits
        scaled = after(ids, position_ids=positions * (2 if kind == "linear" else 1), **given).logits
        longer = after(torch.ones(1, 2 * limit, dtype=torch.long), use_cache=False).logits
    torch.testing.assert_close(one, scaled, rtol=1e-4, atol=1e-5)
    assert longer.isfinite().all()

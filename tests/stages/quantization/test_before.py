"""What GPTQ needs is checked before any weight is loaded: rows enough, groups that fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.errors import ArgumentsError, DataError, ModelError
from stages.quantization.calibration import calibration_blocks
from stages.quantization.layers import check_layers


def rows_of(*lengths: int) -> Any:
    """Rows whose ids tell which row they are of."""
    import numpy as np

    from stages.training.rows import Part, TokenRows

    ids = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    return TokenRows([Part(ids, ids, np.concatenate([[0], np.cumsum(lengths)]))])


def test_rows_are_shuffled_joined_and_cut() -> None:
    import numpy as np

    rows = rows_of(*[5] * 20)
    blocks = calibration_blocks(rows, num_samples=10, block=8, seed=42)
    assert blocks.shape == (6, 8)
    order = np.random.default_rng(42).permutation(20)[:10]
    assert blocks.reshape(-1).tolist() == np.repeat(order, 5).tolist()[:48]
    assert (blocks == calibration_blocks(rows, num_samples=10, block=8, seed=42)).all()
    assert (blocks != calibration_blocks(rows, num_samples=10, block=8, seed=43)).any()


def test_rows_longer_than_a_block_are_left_out() -> None:
    blocks = calibration_blocks(rows_of(9, 4, 9, 4), num_samples=256, block=8, seed=0)
    assert sorted(set(blocks.reshape(-1).tolist())) == [1, 3]


@pytest.mark.parametrize(
    ("lengths", "num_samples", "message"),
    [
        ([3, 3], 256, "one block of `--quant_seqlen 8` tokens, and 2 rows have 6. Give more rows, or lower .* to 6 at"),
        ([3] * 9, 2, "2 rows have 6. Raise `--quant_n_samples 2`, or lower `--quant_seqlen` to 6 at most"),
        ([9, 9, 2], 256, r"1 rows have 2 \(2 longer rows are left out\). Give more rows"),
        ([9], 256, r"0 rows have 0 \(1 longer rows are left out\). Give more rows, or lower `--quant_seqlen`$"),
    ],
)
def test_too_few_tokens_are_refused_with_the_numbers(lengths: list[int], num_samples: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        calibration_blocks(rows_of(*lengths), num_samples=num_samples, block=8, seed=0)


@pytest.mark.parametrize("group_size", [-1, 16, 32, 64])
def test_a_group_size_that_divides_every_layer_fits(group_size: int, tiny_model: Path) -> None:
    assert check_layers(tiny_model, group_size=group_size, block=256) == 384


@pytest.mark.parametrize(
    ("group_size", "block", "message"),
    [
        (128, 64, "128` does not divide the 64 inputs of model.layers.0.self_attn.q_proj. Choose from: 16, 32, 64, -1"),
        (48, 64, "48` does not divide the 64 inputs"),
        (32, 512, "`--quant_seqlen 512` is longer than the 256 tokens that the model takes"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(
    group_size: int, block: int, message: str, tiny_model: Path
) -> None:
    with pytest.raises(ArgumentsError, match=message):
        check_layers(tiny_model, group_size=group_size, block=block)


def test_a_group_size_without_a_kernel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentsError, match="`--group_size 96` has no kernel in GPTQModel"):
        check_layers(save(tmp_path, hidden=96, intermediate=192), group_size=96, block=64)


def test_layers_that_cannot_be_packed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="q_proj is 48 x 48: GPTQ packs weights"):
        check_layers(save(tmp_path, hidden=48, intermediate=96), group_size=16, block=64)


def save(folder: Path, *, hidden: int, intermediate: int) -> Path:
    """A tiny Llama of these sizes; K and V have as many outputs as Q."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=hidden // 2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder

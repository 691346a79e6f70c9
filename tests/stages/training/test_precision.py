"""Device and data type on a machine without a GPU; what a GPU would get is decided by the same table."""

from __future__ import annotations

from typing import Any

import pytest

from stages.arguments import TrainArguments
from stages.errors import ArgumentsError
from stages.training.precision import choose_precision


@pytest.mark.parametrize(
    ("arguments", "model_dtype", "dtype", "mixed"),
    [
        ({}, "bfloat16", "float32", "no"),
        ({}, "float16", "float32", "no"),
        ({"torch_dtype": "float32"}, "bfloat16", "float32", "no"),
        ({"torch_dtype": "bfloat16"}, "float32", "bfloat16", "bf16"),
        ({"bf16": True}, "float32", "bfloat16", "bf16"),
        ({"bf16": True, "torch_dtype": "float32"}, "bfloat16", "float32", "bf16"),
    ],
)
def test_on_a_cpu(arguments: dict[str, Any], model_dtype: str, dtype: str, mixed: str) -> None:
    precision = choose_precision(TrainArguments(use_cpu=True, **arguments), model_dtype)
    assert (precision.on_cpu, precision.dtype, precision.mixed) == (True, dtype, mixed)


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}])
def test_device_map_cpu(device_map: Any) -> None:
    precision = choose_precision(TrainArguments(device_map=device_map), "bfloat16")
    assert precision.on_cpu
    assert precision.device_map is None


def test_weights_on_disk_cannot_be_trained() -> None:
    with pytest.raises(ArgumentsError, match="puts weights on disk, where they cannot be trained"):
        choose_precision(TrainArguments(device_map={"model": "cpu", "lm_head": "disk"}), None)

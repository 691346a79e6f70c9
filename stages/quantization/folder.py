"""The folder that a quantized model becomes: `assemble(weights, model, out, quantization_config)`.

It is the float model's folder with other weights and a `quantization_config`: the same tokenizer, template and licence,
to the byte. Nothing in it tells of the machine or the moment.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.errors import StageFailed

__all__ = ["assemble", "count_quantized", "weights_bytes"]

# One tensor of each of these is stored for every quantized layer: GPTQ, 4 bit and 8 bit of bitsandbytes.
MARKS = (".qweight", ".weight.absmax", ".SCB")


def assemble(
    weights: Path, model: Path, out: Path, quantization_config: Mapping[str, Any], dtype: str | None = None
) -> None:
    """Moves the safetensors files of `weights` into `out` and adds the rest of the model's files.

    Args:
        weights: what the library has written.
        model: the float model's folder.
        out: the artifact.
        quantization_config: for config.json.
        dtype: of what is not quantized, where it is not what config.json says.
    """
    from stages.training.companions import link_companions

    files = [*weights.glob("*.safetensors"), *weights.glob("*.safetensors.index.json")]
    if not files:
        raise StageFailed("quantize failed: no weights were written")
    for file in files:
        shutil.move(file, out / file.name)
        (out / file.name).chmod(0o644)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = dict(quantization_config)
    if dtype is not None:
        config.pop("torch_dtype", None)  # its name before transformers 5
        config["dtype"] = dtype
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    link_companions(model, out)


def count_quantized(folder: Path) -> int:
    """Layers whose weights are quantized, by the tensors in the files."""
    from safetensors import safe_open

    names = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            names += list(tensors.keys())
    return sum(name.endswith(MARKS) for name in names)


def weights_bytes(folder: Path) -> int:
    """Of the safetensors files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))

"""Writes safetensors shards tensor by tensor, so that a model larger than memory can be written.

`write_safetensors([Tensor("lm_head.weight", "bfloat16", (10, 4), chunks)], Path("out"))`
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

__all__ = ["CODES", "Tensor", "write_safetensors"]

SHARD_BYTES = 5 * 10**9
CODES = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}
"""The format's code and the bytes of a value, by torch's name of the data type."""


@dataclass(frozen=True)
class Tensor:
    """A tensor whose bytes are made only while it is written.

    Attributes:
        name: the parameter's name in the Hugging Face model.
        dtype: one of CODES.
        shape: sizes, outermost first.
        chunks: gives the bytes in row-major order, little-endian, piece by piece.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[bytes | memoryview]]

    @property
    def nbytes(self) -> int:
        """Its size on disk."""
        return prod(self.shape) * CODES[self.dtype][1]


def write_safetensors(
    tensors: Sequence[Tensor],
    out: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[float, float, str], None] | None = None,
) -> None:
    """Writes `model.safetensors`, or numbered shards with an index, in the order given."""
    shards = _shards(tensors, shard_bytes)
    total = sum(tensor.nbytes for tensor in tensors)
    done = 0
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        single = len(shards) == 1
        name = "model.safetensors" if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (out / name).open("wb") as file:
            file.write(_header(shard))
            for tensor in shard:
                written = sum(file.write(chunk) for chunk in tensor.chunks())
                assert written == tensor.nbytes, f"{tensor.name}: {written} bytes for a shape of {tensor.shape}"
                weight_map[tensor.name] = name
                done += written
                if progress:
                    progress(done, total, f"{done / 1e6:.0f} of {total / 1e6:.0f} MB of weights")
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(tensors: Sequence[Tensor], shard_bytes: int) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _header(tensors: Sequence[Tensor]) -> bytes:
    """The format's head: its length in 8 bytes, then JSON padded with blanks so that the data are aligned to 8."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        code = CODES[tensor.dtype][0]
        entries[tensor.name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text

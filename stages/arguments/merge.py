"""SWIFT's merge parameters: folding an adapter into its model, and how weights are stored."""

import re
from typing import Annotated, ClassVar

from pydantic import BeforeValidator

from stages.arguments.base import Arguments, option

__all__ = ["MergeLoraArguments", "SaveArguments", "shard_bytes"]

_UNITS = {"B": 1} | {
    f"{prefix}{suffix}": base**power
    for suffix, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate("KMGT", start=1)
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?i?B)?", re.IGNORECASE)


def shard_bytes(size: str) -> int:
    """Bytes meant by `5GB` (10^9 each) or `5GiB` (2^30 each); a bare number is bytes.

    Raises:
        ValueError: if it is not a size, or nothing.
    """
    match = _SIZE.fullmatch(size.strip())
    unit = "".join(("i" if letter in "iI" else letter.upper()) for letter in (match[2] or "B")) if match else ""
    count = int(float(match[1]) * _UNITS[unit]) if match and unit in _UNITS else 0
    if count < 1:
        raise ValueError("give a size such as 5GB (10^9 bytes), 5GiB (2^30 bytes) or a number of bytes")
    return count


def _check_size(value: object) -> object:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str):
        shard_bytes(text)
    return text


class MergeLoraArguments(Arguments):
    """Whether an adapter is merged."""

    GROUP: ClassVar[str] = "Merge Parameters"

    merge_lora: bool = option(False)
    """Fold the adapter into the model."""


class SaveArguments(Arguments):
    """How weights are stored."""

    GROUP: ClassVar[str] = "Merge Parameters"

    safe_serialization: bool = option(True)
    """Store weights as safetensors."""
    max_shard_size: Annotated[str, BeforeValidator(_check_size, json_schema_input_type=str | int)] = option("5GB")
    """Largest file that weights are stored in: 5GB is 5 x 10^9 bytes, 5GiB is 5 x 2^30."""

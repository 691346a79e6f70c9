"""What belongs to a plain Hugging Face model folder, and whether it is whole: `check_model_folder(Path("smollm2"))`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any

from stages.errors import ModelError
from stages.links import link_or_copy

__all__ = [
    "MODEL_FILES",
    "PICKLES",
    "PROCESSOR_FILES",
    "TOKENIZER_FILES",
    "ModelFacts",
    "check_model_folder",
    "choose_model_files",
    "has_processor",
    "link_model_files",
]

TOKENIZER_FILES = (
    "config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template*",
    "*.model",
    "*.tiktoken",
)
"""Globs of what a model's tokenizer needs."""

PROCESSOR_FILES = ("*preprocessor_config.json", "processor_config.json")
"""Globs of what describes how a model takes images, videos and audios."""

MODEL_FILES = (
    *TOKENIZER_FILES,
    "generation_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    *PROCESSOR_FILES,
    "LICENSE*",
    "NOTICE*",
)
"""Globs of what a model needs; pickles, other frameworks' weights, optimizer states and code are not among them."""

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
INDEX = "model.safetensors.index.json"
BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8}
HEADER_BYTES_MAX = 100 << 20


@dataclass(frozen=True)
class ModelFacts:
    """What a model's files say of it, read without loading any weight."""

    architecture: str
    num_parameters: int
    dtype: str
    weights_bytes: int


def choose_model_files(names: Iterable[str], model: str) -> list[str]:
    """Those of a repository's files that a model needs.

    Raises:
        ModelError: there are no safetensors, or only an adapter.
    """
    names = sorted(names)
    chosen = [name for name in names if any(fnmatchcase(name, glob) for glob in MODEL_FILES) and "/" not in name]
    if INDEX in chosen:
        chosen = [name for name in chosen if name != "model.safetensors"]
    if "adapter_config.json" in names and "config.json" not in names:
        raise ModelError(f"{model} is an adapter, not a model: give the model that it was trained on as `--model`")
    if "config.json" not in chosen:
        ggufs = [name for name in names if name.endswith(".gguf")]
        hint = f". It has GGUF files: fetch one, such as {ggufs[0]}, and give its path" if ggufs else ""
        raise ModelError(f"{model} has no config.json: it is not a Hugging Face model{hint}")
    if not any(name.endswith(".safetensors") for name in chosen):
        pickles = [name for name in names if any(fnmatchcase(name, glob) for glob in PICKLES)]
        if pickles:
            raise ModelError(
                f"{model} keeps its weights as pickles ({pickles[0]}), which can run code when opened. Convert them: "
                f"AutoModelForCausalLM.from_pretrained(…).save_pretrained(…) writes safetensors"
            )
        raise ModelError(f"{model} has no weights: model.safetensors or {INDEX} is missing")
    return chosen


def has_processor(folder: Path) -> bool:
    """Whether a model folder describes a processor."""
    return any(next(folder.glob(glob), None) for glob in PROCESSOR_FILES)


def link_model_files(source: Path, out: Path) -> list[str]:
    """Puts the files that a model needs into `out`, as hard links where the file system allows.

    Returns:
        The names of those that were left behind.
    """
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
    chosen = choose_model_files(names, source.name)
    for name in chosen:
        link_or_copy(source / name, out / name)
    return [name for name in names if name not in set(chosen)]


def check_model_folder(folder: Path) -> ModelFacts:
    """Reads configuration, index and the head of every shard; loads nothing.

    Raises:
        ModelError: what is missing, cut off or does not fit together.
    """
    config = read_json(folder / "config.json")
    architectures = config.get("architectures") or [config.get("model_type")]
    if not architectures[0]:
        raise ModelError(f"{folder.name}/config.json names neither architectures nor model_type")
    heads = {name: _read_head(folder / name) for name in _shards(folder)}
    _check_index(folder, heads)
    tensors = [tensor for head in heads.values() for tensor in head.values()]
    dtypes = [tensor["dtype"] for tensor in tensors]
    return ModelFacts(
        architecture=str(architectures[0]),
        num_parameters=sum(prod(tensor["shape"]) for tensor in tensors),
        dtype=max(sorted(set(dtypes)), key=dtypes.count),
        weights_bytes=sum((folder / name).stat().st_size for name in heads),
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelError: it is missing or malformed.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{path.parent.name}/{path.name} is missing") from None
    except ValueError as error:
        raise ModelError(f"{path.parent.name}/{path.name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path.parent.name}/{path.name} holds no JSON object")
    return value


def _shards(folder: Path) -> list[str]:
    if (folder / INDEX).exists():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(f"{folder.name}/{INDEX} lists no weights")
        return sorted(set(weight_map.values()))
    return ["model.safetensors"]


def _check_index(folder: Path, heads: Mapping[str, Mapping[str, Any]]) -> None:
    if not (folder / INDEX).exists():
        return
    for name, shard in read_json(folder / INDEX)["weight_map"].items():
        if name not in heads[shard]:
            raise ModelError(f"{folder.name}/{INDEX} looks for {name} in {shard}, which does not have it")


def _read_head(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file by name, after the file's length has been held against what they need."""
    name = f"{path.parent.name}/{path.name}"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            head = json.loads(file.read(length)) if length <= min(size - 8, HEADER_BYTES_MAX) else None
    except FileNotFoundError:
        raise ModelError(f"{name} is missing") from None
    except ValueError:
        head = None
    if not isinstance(head, dict):
        raise ModelError(f"{name} is damaged: its head is not that of a safetensors file. Fetch the file again")
    head.pop("__metadata__", None)
    try:
        end = max((tensor["data_offsets"][1] for tensor in head.values()), default=0)
        fits = all(_fits(tensor) for tensor in head.values())
    except (KeyError, TypeError, IndexError, AttributeError):
        raise ModelError(
            f"{name} is damaged: its head lists something that is no tensor. Fetch the file again"
        ) from None
    if not fits or 8 + length + end != size:
        raise ModelError(
            f"{name} is damaged: {size} bytes long, while its head tells of {8 + length + end}. Fetch the file again"
        )
    return head


def _fits(tensor: Mapping[str, Any]) -> bool:
    start, end = tensor["data_offsets"]
    bits = BITS.get(tensor["dtype"])
    return bits is None or end - start == prod(tensor["shape"]) * bits // 8

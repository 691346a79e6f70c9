"""Which tensors a merged model has, and what each is made of: `plan_merge(BaseWeights(folder), edits)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ModelError
from stages.training.classifier import HEADS as CLASSIFIERS

if TYPE_CHECKING:
    from torch import Tensor

    from stages.training.edits import Edit

__all__ = ["AddedTensor", "BaseTensor", "BaseWeights", "MergePlan", "MergedTensor", "plan_merge"]

# Where the output head is not stored, it is the input embedding.
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight")
HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
FLOATS = ("F64", "F32", "F16", "BF16")
WRITERS = ("lm_head", "embed_out", "output")
"""Modules with which a model writes; one that tells classes apart has none."""


@dataclass(frozen=True)
class BaseTensor:
    """A tensor of the base model, as the head of its file describes it."""

    shard: Path
    code: str
    shape: tuple[int, ...]


class BaseWeights:
    """The tensors of a model folder, by name; they are read only when asked for."""

    def __init__(self, folder: Path) -> None:
        """Reads the heads of all shards.

        Raises:
            ModelError: the model is quantized.
        """
        from safetensors import safe_open

        from stages.sources.model_folder import read_json

        self._folder = folder
        self.config = read_json(folder / "config.json")
        if quantized := self.config.get("quantization_config"):
            method = quantized.get("quant_method", "unknown method")
            raise ModelError(
                f"the model is quantized ({method}), and merging into rounded weights loses most of the adapter: "
                "give the float model that it was quantized from"
            )
        self.tensors: dict[str, BaseTensor] = {}
        self._open: dict[Path, Any] = {
            path: safe_open(path, framework="pt") for path in sorted(folder.glob("model*.safetensors"))
        }
        for path, file in self._open.items():
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                part = file.get_slice(name)
                self.tensors[name] = BaseTensor(path, part.get_dtype(), tuple(part.get_shape()))

    def read(self, name: str) -> Tensor:
        """The tensor called `name`, mapped from its file."""
        tensor: Tensor = self._open[self.tensors[name].shard].get_tensor(name)
        return tensor

    def find(self, name: str) -> str | None:
        """The stored name of what a module tree calls `name`: some models are stored without their first prefix.

        Others, most of which see, are stored under the names that their modules had once; transformers knows those.
        """
        if name in self.tensors:
            return name
        short = [stored for stored in self.tensors if name.endswith(f".{stored}")]
        return max(short, key=len, default=None) or self._names_in_the_tree.get(name)

    @cached_property
    def _names_in_the_tree(self) -> dict[str, str]:
        """Stored names by those in the module tree."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key

        from stages.training.loading import load_skeleton

        classifies = any(name.endswith("ForSequenceClassification") for name in self.config.get("architectures") or ())
        skeleton = load_skeleton(self._folder, len(self.config.get("id2label") or "01") if classifies else None)
        known, prefix = skeleton.state_dict(), skeleton.base_model_prefix
        renamings = [one for one in get_model_conversion_mapping(skeleton) if isinstance(one, WeightRenaming)]
        return {rename_source_key(stored, renamings, [], prefix, known)[0]: stored for stored in self.tensors}

    def not_found(self, name: str) -> str:
        """What to say of a tensor that an adapter changes and that is not there."""
        close = get_close_matches(name, self.tensors, n=1)
        hint = f"; the closest is {close[0]}" if close else ""
        return f"the adapter changes {name}, which the model does not have{hint}: it was trained on another model"

    @property
    def embedding(self) -> str | None:
        """The input embedding's name."""
        return next((name for name in self.tensors if name.endswith(EMBEDDINGS)), None)

    @property
    def ties_head(self) -> bool:
        """Whether the output head is the input embedding."""
        stored = any(name.endswith(HEADS) for name in self.tensors)
        return not stored or bool(self.config.get("tie_word_embeddings"))


@dataclass(frozen=True)
class MergedTensor:
    """A tensor to write: one of the base's, changed or not."""

    name: str
    source: str
    edit: Edit | None = None

    def make(self, base: BaseWeights) -> Tensor:
        """Its values."""
        value = base.read(self.source)
        return value if self.edit is None else self.edit.apply(value)

    def stored(self, base: BaseWeights) -> tuple[str, tuple[int, ...]]:
        """Its type, as a file names it, and its shape."""
        tensor = base.tensors[self.source]
        return tensor.code, tensor.shape


@dataclass(frozen=True)
class AddedTensor:
    """A tensor to write that the base does not have: the head of a classifier, as it was trained."""

    name: str
    value: Tensor

    def make(self, base: BaseWeights) -> Tensor:
        """Its values."""
        return self.value

    def stored(self, base: BaseWeights) -> tuple[str, tuple[int, ...]]:
        """See `MergedTensor`."""
        code = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
        return code[str(self.value.dtype).removeprefix("torch.")], tuple(self.value.shape)


@dataclass(frozen=True)
class MergePlan:
    """What the merged model is made of.

    Attributes:
        tensors: in the order in which they are written.
        unties: whether the output head, which was the input embedding, becomes a tensor of its own.
    """

    tensors: tuple[MergedTensor | AddedTensor, ...]
    unties: bool


def plan_merge(base: BaseWeights, edits: tuple[Edit, ...], *, classifies: bool = False) -> MergePlan:
    """Finds the base tensor of each edit.

    A head that shares its weights with the embedding parts from it when one of the two changes: in training, an
    adapter on one of them leaves the other as it was.

    Args:
        base: the model.
        edits: what changes.
        classifies: whether the merged model tells classes apart: it gets the adapter's head, and loses the one that
            writes.

    Raises:
        ModelError: an edit fits no tensor.
    """
    found: dict[str, Edit] = {}
    heads: dict[str, Edit | None] = {}
    added: list[AddedTensor] = []
    for edit in edits:
        if classifies and edit.name not in base.tensors and edit.name.partition(".")[0] in CLASSIFIERS:
            added.append(AddedTensor(edit.name, edit.parts["replacement"]))
            continue
        stored = base.find(edit.name)
        if stored is not None:
            _check(edit, stored, base)
            found[stored] = edit
        elif edit.name.endswith(HEADS) and base.embedding is not None:
            _check(edit, base.embedding, base)
            heads[edit.name] = edit
        else:
            raise ModelError(base.not_found(edit.name))
    if classifies:
        kept = [name for name in base.tensors if name.partition(".")[0] not in WRITERS]
        return MergePlan((*(MergedTensor(name, name, found.get(name)) for name in kept), *added), unties=False)
    touched = bool(heads) or any(name.endswith((*EMBEDDINGS, *HEADS)) for name in found)
    unties = touched and base.ties_head
    if unties and not heads and not any(name.endswith(HEADS) for name in base.tensors):
        heads[HEADS[0]] = None
    tensors = [MergedTensor(name, name, found.get(name)) for name in base.tensors]
    if base.embedding is not None:
        tensors += [MergedTensor(name, base.embedding, edit) for name, edit in heads.items()]
    return MergePlan(tuple(tensors), unties)


def _check(edit: Edit, stored: str, base: BaseWeights) -> None:
    tensor = base.tensors[stored]
    if edit.shape() != tensor.shape or any(part.shape != tensor.shape for part in _replacements(edit.parts)):
        raise ModelError(
            f"the adapter's {edit.name} is for a tensor of shape {edit.shape()}, the model's has {tensor.shape}: "
            "the adapter was trained on another model"
        )
    if tensor.code not in FLOATS:
        raise ModelError(f"the model's {stored} is of type {tensor.code}: an adapter can be merged into floats only")


def _replacements(parts: Mapping[str, Any]) -> list[Tensor]:
    return [parts["replacement"]] if "replacement" in parts else []

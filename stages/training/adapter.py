"""A LoRA adapter as changes to the tensors of its base model: `read_adapter(Path("adapter"))`.

The names in an adapter are those of modules; each one becomes an edit of a base tensor: a low-rank update (LoRA,
rsLoRA, DoRA; linear layers and embeddings), a bias that is added, or a tensor that is replaced (modules_to_save).
Only torch and safetensors are needed: importing peft takes longer than a merge.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Edit", "read_adapter"]

PREFIX = "base_model.model."
PART = re.compile(
    r"(?P<target>.+)\.lora_"
    r"(?P<role>A\.weight|B\.weight|B\.bias|embedding_A|embedding_B|magnitude_vector(?:\.weight)?)"
)
# Each changes what the two matrices mean; without knowing it, a merge would be wrong without any error.
NOT_MERGED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
# These starts leave the base model as it is; the others (PiSSA, OLoRA, LoftQ …) take their start out of its weights.
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Edit:
    """What becomes of one base tensor.

    Attributes:
        name: the base tensor, as the adapter names it.
        parts: the adapter's tensors by role. `replacement` stands in for the base; `A` (rank x inputs) and `B`
            (outputs x rank), or `embedding_A` (rank x tokens) and `embedding_B` (width x rank), are added to it as a
            product; `bias` is added; `magnitude_vector` is the length that DoRA then gives to each output.
        scaling: lora_alpha / r, or lora_alpha / sqrt(r) for rsLoRA.
        transposed: the base stores inputs first (Conv1D of GPT-2).
    """

    name: str
    parts: Mapping[str, Tensor]
    scaling: float = 1.0
    transposed: bool = False

    def shape(self) -> tuple[int, ...]:
        """The shape that the base tensor must have."""
        parts = self.parts
        if "A" in parts:
            outputs, inputs = parts["B"].shape[0], parts["A"].shape[1]
            return (inputs, outputs) if self.transposed else (outputs, inputs)
        if "embedding_A" in parts:
            return (parts["embedding_A"].shape[1], parts["embedding_B"].shape[0])
        return tuple(next(iter(parts.values())).shape)

    def apply(self, base: Tensor) -> Tensor:
        """The merged tensor, computed in float32 and in the data type of `base`."""
        parts = {role: part.float() for role, part in self.parts.items()}
        merged: Tensor = parts["replacement"] if "replacement" in parts else base.float()
        if "bias" in parts:
            merged = merged + self.scaling * parts["bias"]
        if "A" in parts:
            update = self.scaling * (parts["B"] @ parts["A"])
            merged = merged + (update.T if self.transposed else update)
        if "embedding_A" in parts:
            merged = merged + self.scaling * (parts["embedding_B"] @ parts["embedding_A"]).T
        if "magnitude_vector" in parts:
            outputs_first = "A" in parts and not self.transposed
            merged = _at_length(merged, parts["magnitude_vector"].flatten(), outputs_first)
        result: Tensor = merged.to(base.dtype)
        return result


def _at_length(weight: Tensor, magnitude: Tensor, outputs_first: bool) -> Tensor:
    """DoRA (arXiv 2402.09353, equation 5): the weight's direction, times a learnt length for each output."""
    factor: Tensor = magnitude / weight.norm(dim=1 if outputs_first else 0)
    return weight * (factor[:, None] if outputs_first else factor)


def read_adapter(folder: Path) -> tuple[Edit, ...]:
    """Reads adapter_config.json and adapter_model.safetensors.

    Returns:
        One edit for each base tensor that changes, in the order of their names.

    Raises:
        ModelError: it is no LoRA adapter, is damaged, or of a kind that cannot be merged.
    """
    config = _read_config(folder)
    modules: dict[str, dict[str, Tensor]] = {}
    replacements: dict[str, Tensor] = {}
    for key, tensor in _read_tensors(folder).items():
        name = key.removeprefix(PREFIX)
        if match := PART.fullmatch(name):
            modules.setdefault(match["target"], {})[match["role"].removesuffix(".weight")] = tensor
        elif ".lora_" in name:
            raise ModelError(f"the adapter's tensor {key} is of a kind that merge does not know")
        else:
            replacements[name.replace(".base_layer.", ".")] = tensor
    edits = {}
    for target, parts in modules.items():
        for edit in _edits_of(target, parts, replacements, config):
            edits[edit.name] = edit
            replacements.pop(edit.name, None)
    edits |= {name: Edit(name, {"replacement": tensor}) for name, tensor in replacements.items()}
    return tuple(edits[name] for name in sorted(edits))


def _edits_of(
    target: str, parts: Mapping[str, Tensor], replacements: Mapping[str, Tensor], config: Mapping[str, Any]
) -> list[Edit]:
    """The edits of a module's weight and, where the adapter has one, of its bias."""
    kind = "embedding_" if "embedding_A" in parts else ""
    first, second = parts.get(f"{kind}A"), parts.get(f"{kind}B")
    if first is None or second is None:
        raise ModelError(f"the adapter has only one of the two matrices of {target}: it is incomplete")
    if first.ndim != 2 or second.ndim != 2 or first.shape[0] != second.shape[1]:
        shapes = f"{tuple(second.shape)} and {tuple(first.shape)}"
        raise ModelError(f"the adapter's matrices of {target} have the shapes {shapes}, which cannot be multiplied")
    scaling = _scaling(target, first.shape[0], config)
    weight = {role: tensor for role, tensor in parts.items() if role != "B.bias"}
    bias = {"bias": parts["B.bias"]} if "B.bias" in parts else {}
    edits = []
    for suffix, own in (("weight", weight), ("bias", bias)):
        name = f"{target}.{suffix}"
        if own:
            replaced = {"replacement": replacements[name]} if name in replacements else {}
            edits.append(Edit(name, own | replaced, scaling, bool(config.get("fan_in_fan_out")) and not kind))
    return edits


def _scaling(target: str, rank: int, config: Mapping[str, Any]) -> float:
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    alpha = next(
        (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", target)),
        config["lora_alpha"],
    )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _read_config(folder: Path) -> dict[str, Any]:
    from stages.sources.model_folder import read_json

    config = read_json(folder / "adapter_config.json")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"merging an adapter of type {kind} is not supported yet: LORA is")
    if not isinstance(config.get("lora_alpha"), int | float):
        raise ModelError(f"{folder.name}/adapter_config.json has no lora_alpha")
    for name in NOT_MERGED:
        if config.get(name):
            raise ModelError(f"merging an adapter with {name} is not supported yet")
    start = config.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        raise ModelError(
            f"merging an adapter with init_lora_weights={start} is not supported yet: its base model's weights were "
            "changed when it was made"
        )
    return config


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the adapter, after a look for the marks of a training that broke down."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        held = ", ".join(sorted(file.name for file in folder.iterdir()))
        raise ModelError(f"the adapter has no adapter_model.safetensors; it holds {held}")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{folder.name}/{path.name} is damaged: {error}") from None
    if not tensors:
        raise ModelError(f"{folder.name}/{path.name} holds no tensor")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ModelError(f"the adapter's tensor {name} has values that are no numbers: its training broke down")
    return tensors

"""A PEFT adapter as changes to the tensors of its base model: `read_adapter(Path("adapter"), base)`.

The names in an adapter are those of modules; each one becomes an edit of a base tensor. Kinds are LoRA (with rsLoRA,
DoRA, and PiSSA as Martlet stores it), AdaLoRA, VeRA, FourierFT and BOFT; with each of them biases and whole modules may
be replaced. Only torch and safetensors are needed: importing peft takes longer than a merge.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ModelError
from stages.training.edits import AdaLoraEdit, BoftEdit, Edit, FourierEdit, VeraEdit

if TYPE_CHECKING:
    from torch import Tensor

    from stages.training.merging import BaseWeights

__all__ = ["read_adapter"]

PREFIX = "base_model.model."
LORA_PART = re.compile(
    r"(?P<target>.+)\.lora_"
    r"(?P<role>A\.weight|B\.weight|B\.bias|embedding_A|embedding_B|magnitude_vector(?:\.weight)?)"
)
OTHER_PART = re.compile(r"(?P<target>.+)\.(?P<role>lora_[ABE]|vera_lambda_[bd]|fourierft_spectrum|boft_[Rs])")
SHARED = re.compile(r"base_model\.(?P<role>vera_[AB])")
MARKS = (".lora_", ".vera_", ".fourierft_", ".boft_")
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

Parts = Mapping[str, "Tensor"]


def read_adapter(folder: Path, base: BaseWeights) -> tuple[Edit, ...]:
    """Reads adapter_config.json and adapter_model.safetensors.

    Args:
        folder: the adapter.
        base: the model that it was trained on; some kinds do not say themselves how large a layer is.

    Returns:
        One edit for each base tensor that changes, in the order of their names.

    Raises:
        ModelError: it is no adapter, is damaged, incomplete, or of a kind that cannot be merged.
    """
    config = _read_config(folder)
    kind = config["peft_type"]
    modules: dict[str, dict[str, Tensor]] = {}
    replacements: dict[str, Tensor] = {}
    shared: dict[str, Tensor] = {}
    pattern = LORA_PART if kind == "LORA" else OTHER_PART
    for key, tensor in _read_tensors(folder).items():
        name = key.removeprefix(PREFIX)
        if match := pattern.fullmatch(name):
            modules.setdefault(match["target"], {})[match["role"].removesuffix(".weight")] = tensor
        elif match := SHARED.fullmatch(name):
            shared[match["role"]] = tensor
        elif any(mark in name for mark in MARKS):
            raise ModelError(f"the adapter's tensor {key} is of a kind that merge does not know")
        else:
            replacements[name.replace(".base_layer.", ".")] = tensor
    edits = {}
    if kind == "LORA":
        made: Iterable[Edit] = (
            edit for target, parts in modules.items() for edit in _lora_edits(target, parts, replacements, config)
        )
    else:
        made = KINDS[kind](modules, shared, config, base)
    for edit in made:
        edits[edit.name] = edit
        replacements.pop(edit.name, None)
    edits |= {name: Edit(name, {"replacement": tensor}) for name, tensor in replacements.items()}
    return tuple(edits[name] for name in sorted(edits))


def _lora_edits(
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


def _adalora_edits(
    modules: Mapping[str, Parts], shared: Parts, config: Mapping[str, Any], base: BaseWeights
) -> Iterable[Edit]:
    """The strength stays that of the first rank, as peft has it, down to its guard against a division by zero."""
    scaling = float(config["lora_alpha"] or config["init_r"]) / (config["init_r"] + 1e-5)
    for target, parts in modules.items():
        _check_parts(target, parts, "lora_A", "lora_B", "lora_E")
        yield AdaLoraEdit(f"{target}.weight", parts, scaling, bool(config.get("fan_in_fan_out")))


def _vera_edits(
    modules: Mapping[str, Parts], shared: Parts, config: Mapping[str, Any], base: BaseWeights
) -> Iterable[Edit]:
    transposed = bool(config.get("fan_in_fan_out"))
    shapes = {target: _shape_of(f"{target}.weight", base, transposed) for target in modules}
    if set(shared) != {"vera_A", "vera_B"}:
        outputs, inputs = (max(shape[side] for shape in shapes.values()) for side in (0, 1))
        shared = _vera_projection(outputs, inputs, config)
    for target, parts in modules.items():
        _check_parts(target, parts, "vera_lambda_b", "vera_lambda_d")
        yield VeraEdit(f"{target}.weight", {**parts, **shared}, 1.0, transposed, inputs=shapes[target][1])


def _vera_projection(outputs: int, inputs: int, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The two matrices where they are not stored: uniform, Kaiming's bounds, from the adapter's seed."""
    import torch

    generator = torch.Generator().manual_seed(config.get("projection_prng_key") or 0)
    rank = config["r"]
    made = {}
    for role, shape in (("vera_A", (rank, inputs)), ("vera_B", (outputs, rank))):
        bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1]))
        made[role] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return made


def _fourier_edits(
    modules: Mapping[str, Parts], shared: Parts, config: Mapping[str, Any], base: BaseWeights
) -> Iterable[Edit]:
    transposed = bool(config.get("fan_in_fan_out"))
    for target, parts in modules.items():
        name = f"{target}.weight"
        stored = _shape_of(name, base)
        seed = config.get("random_loc_seed", 777)
        yield FourierEdit(name, parts, float(config["scaling"]), transposed, stored=stored, seed=seed)


def _boft_edits(
    modules: Mapping[str, Parts], shared: Parts, config: Mapping[str, Any], base: BaseWeights
) -> Iterable[Edit]:
    for target, parts in modules.items():
        _check_parts(target, parts, "boft_R", "boft_s")
        if parts["boft_R"].shape[0] != 1:
            raise ModelError(
                f"merging a BOFT adapter with {parts['boft_R'].shape[0]} butterfly factors is not supported yet: 1 is"
            )
        yield BoftEdit(f"{target}.weight", parts)


KINDS: Mapping[str, Callable[[Mapping[str, Parts], Parts, Mapping[str, Any], BaseWeights], Iterable[Edit]]] = {
    "ADALORA": _adalora_edits,
    "VERA": _vera_edits,
    "FOURIERFT": _fourier_edits,
    "BOFT": _boft_edits,
}


def _check_parts(target: str, parts: Parts, *roles: str) -> None:
    missing = [role for role in roles if role not in parts]
    if missing:
        raise ModelError(f"the adapter has no {missing[0]} of {target}: it is incomplete")


def _shape_of(name: str, base: BaseWeights, transposed: bool = False) -> tuple[int, ...]:
    """Of a base tensor, outputs first if the base stores them so or `transposed` undoes that.

    Raises:
        ModelError: the base has none of that name.
    """
    stored = base.find(name)
    if stored is None:
        raise ModelError(base.not_found(name))
    shape = base.tensors[stored].shape
    return shape[::-1] if transposed else shape


def _read_config(folder: Path) -> dict[str, Any]:
    from stages.sources.model_folder import read_json

    if (folder / "reft_config.json").is_file():
        raise ModelError(f"{folder.name} is a ReFT: interventions on hidden states cannot be folded into a model")
    config = read_json(folder / "adapter_config.json")
    if config.get("swift_type") == "ADAPTER":
        raise ModelError(
            f"{folder.name} holds networks that stand between the model's layers (`--train_type adapter`), and no "
            "weight that is there could stand for them: use it as it is, or train with `--train_type lora`"
        )
    kind = str(config.get("peft_type"))
    if kind != "LORA" and kind not in KINDS:
        raise ModelError(f"merging an adapter of type {kind} is not supported yet: {', '.join(['LORA', *KINDS])} are")
    needed = {"LORA": ["lora_alpha"], "ADALORA": ["lora_alpha", "init_r"], "VERA": ["r"], "FOURIERFT": ["scaling"]}
    for name in needed.get(kind, ()):
        if not isinstance(config.get(name), int | float):
            raise ModelError(f"{folder.name}/adapter_config.json has no {name}")
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

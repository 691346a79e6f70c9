"""A model for training, first without its weights: `load_skeleton(folder, arguments)`, `load_model(…)`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ModelError

if TYPE_CHECKING:
    from stages.arguments import TrainArguments
    from stages.training.precision import Precision

__all__ = ["load_model", "load_skeleton"]


def load_skeleton(folder: Path) -> Any:
    """All modules of a model, in a fraction of a second and without memory for weights.

    Raises:
        ModelError: its files are damaged, or transformers does not know it.
    """
    import torch
    from transformers import AutoConfig

    from stages.sources.model_folder import check_model_folder
    from stages.training.multimodal import load_class

    check_model_folder(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            return load_class(config).from_config(config)
    except (ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(f"the model cannot be loaded: {_first_line(error)}") from None


def load_model(folder: Path, arguments: TrainArguments, precision: Precision) -> Any:
    """The model with its weights.

    Raises:
        ModelError: weights that do not fit its configuration.
    """
    import torch
    from transformers import AutoConfig

    from stages.training.multimodal import load_class

    given: dict[str, Any] = {}
    if arguments.attn_impl is not None:
        given["attn_implementation"] = arguments.attn_impl
    if precision.device_map is not None:
        given["device_map"] = precision.device_map
    try:
        auto = load_class(AutoConfig.from_pretrained(folder, local_files_only=True))
        model = auto.from_pretrained(folder, dtype=getattr(torch, precision.dtype), local_files_only=True, **given)
    except (ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(f"the model cannot be loaded: {_first_line(error)}") from None
    model.config.use_cache = False
    return model


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

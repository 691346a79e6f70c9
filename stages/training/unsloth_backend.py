"""Models as unsloth loads them, with its adapters: `--tuner_backend unsloth`; the package needs a GPU.

It changes transformers and peft when it is imported, so that has to come before them: `import_unsloth()`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ModelError

if TYPE_CHECKING:
    from stages.arguments import TrainArguments
    from stages.training.precision import Precision

__all__ = ["attach_adapter", "import_unsloth", "load_with_unsloth"]


def import_unsloth() -> Any:
    """The package; `check_devices` has found it."""
    return import_module("unsloth")


def load_with_unsloth(folder: Path, arguments: TrainArguments, precision: Precision) -> Any:
    """The model with its weights, in 4 or 8 bits where `quant_bits` says so.

    Raises:
        ModelError: unsloth does not know it.
    """
    import torch

    from stages.sources.model_folder import read_json

    positions = read_json(folder / "config.json").get("max_position_embeddings")
    try:
        model, _ = import_unsloth().FastLanguageModel.from_pretrained(
            model_name=str(folder),
            max_seq_length=positions,
            dtype=getattr(torch, precision.dtype),
            load_in_4bit=arguments.quant_bits == 4,
            load_in_8bit=arguments.quant_bits == 8,
            full_finetuning=arguments.train_type == "full",
            local_files_only=True,
        )
    except (ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(f"unsloth cannot load the model: {line}. Drop `--tuner_backend unsloth`") from None
    model.config.use_cache = False
    return model


def attach_adapter(model: Any, config: Any, arguments: TrainArguments) -> Any:
    """The model with LoRA, as a configuration of peft says."""
    targets = config.target_modules
    return import_unsloth().FastLanguageModel.get_peft_model(
        model,
        r=config.r,
        target_modules=targets if isinstance(targets, str) else sorted(targets),
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        bias=config.bias,
        modules_to_save=config.modules_to_save,
        use_rslora=config.use_rslora,
        init_lora_weights=config.init_lora_weights,
        use_gradient_checkpointing=arguments.gradient_checkpointing,
        random_state=arguments.seed,
    )

"""Training of all weights: `--train_type full`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ModelError
from stages.training.tuners import Tuner

if TYPE_CHECKING:
    from torch import nn

    from stages.arguments import TrainArguments

__all__ = ["FullTuner"]

SHARD_SIZE = "5GB"


@dataclass(frozen=True)
class FullTuner(Tuner):
    """Trains every parameter; leaves a plain Hugging Face folder."""

    arguments: TrainArguments

    def check(self, skeleton: nn.Module) -> None:
        """Refuses quantized weights, which cannot be trained."""
        quantized = getattr(skeleton.config, "quantization_config", None)
        if quantized:
            method = quantized.get("quant_method", "unknown method")
            raise ModelError(
                f"the model is quantized ({method}), and only an adapter can be trained: give `--train_type lora`"
            )

    def weights(self, base: Path, checkpoint: Path | None) -> Path:
        """The checkpoint, which is a whole model.

        Raises:
            ModelError: it is not.
        """
        if checkpoint is None:
            return base
        if not (checkpoint / "config.json").is_file():
            raise ModelError(f"the checkpoint {checkpoint.name} has no config.json: it is not one of a full training")
        return checkpoint

    def prepare(self, model: Any) -> Any:
        """Every parameter is trained; float16 has no room for the steps of an optimizer, so it becomes float32."""
        import torch

        for parameter in model.parameters():
            parameter.requires_grad_(True)
            if parameter.dtype == torch.float16:
                parameter.data = parameter.data.float()
        return model

    def load(self, model: Any, checkpoint: Path) -> None:
        """The model was loaded from the checkpoint."""

    def save(self, model: Any, out: Path) -> None:
        """Writes configuration and safetensors."""
        model.save_pretrained(out, max_shard_size=SHARD_SIZE)

    def complete(self, base: Path, out: Path) -> None:
        """Adds the tokenizer and, as they were, the generation configuration and the use of a cache."""
        from stages.sources.model_folder import read_json
        from stages.training.companions import link_companions

        config = read_json(out / "config.json") | {"use_cache": read_json(base / "config.json").get("use_cache", True)}
        (out / "config.json").unlink()  # it may be a link to a checkpoint's
        (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (out / "generation_config.json").unlink(missing_ok=True)
        link_companions(base, out)

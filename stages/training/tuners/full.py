"""Training of all weights, all the time or, with LISA, a few layers at a time: `--train_type full`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ModelError
from stages.training.tuners import Tuner

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainerCallback

    from stages.arguments import TrainArguments
    from stages.training.tuners.lisa import LisaSwitch

__all__ = ["FullTuner", "check_not_quantized", "checkpoint_of_a_model", "complete_model", "save_model"]

SHARD_SIZE = "5GB"


@dataclass(frozen=True)
class FullTuner(Tuner):
    """Trains every parameter; leaves a plain Hugging Face folder.

    Attributes:
        lisa: chooses layers, once the model is there, if LISA is wanted.
    """

    arguments: TrainArguments
    lisa: list[LisaSwitch] = field(default_factory=list)

    def check(self, skeleton: nn.Module) -> None:
        """Refuses quantized weights, more layers for LISA than there are, and modules for GaLore that are not there."""
        check_not_quantized(skeleton)
        if self.arguments.lisa_activated_layers:
            from stages.training.tuners.lisa import check_lisa

            check_lisa(self.arguments, skeleton)
        if self.arguments.use_galore:
            from stages.training.optimizers.galore import projected_modules

            projected_modules(skeleton, self.arguments)

    def weights(self, base: Path, checkpoint: Path | None) -> Path:
        """The checkpoint, which is a whole model."""
        return base if checkpoint is None else checkpoint_of_a_model(checkpoint, "full")

    def prepare(self, model: Any) -> Any:
        """Every parameter is trained; float16 has no room for the steps of an optimizer, so it becomes float32."""
        import torch

        for parameter in model.parameters():
            parameter.requires_grad_(True)
            if parameter.dtype == torch.float16:
                parameter.data = parameter.data.float()
        if self.arguments.lisa_activated_layers:
            from stages.training.tuners.lisa import make_lisa

            self.lisa[:] = [make_lisa(self.arguments, model)]
        return model

    def load(self, model: Any, checkpoint: Path) -> None:
        """The model was loaded from the checkpoint."""

    def save(self, model: Any, out: Path) -> None:
        """Writes configuration and safetensors."""
        save_model(model, out)

    def complete(self, base: Path, out: Path) -> None:
        """Adds what stands beside a model's weights."""
        complete_model(base, out)

    def callbacks(self) -> Sequence[TrainerCallback]:
        """LISA's."""
        return self.lisa

    def save_state(self, model: Any, checkpoint: Path) -> None:
        """Which layers LISA has chosen, and its random state."""
        for lisa in self.lisa:
            lisa.save(checkpoint)

    def load_state(self, model: Any, checkpoint: Path) -> None:
        """Goes on with the same layers."""
        for lisa in self.lisa:
            lisa.load(checkpoint)


def check_not_quantized(skeleton: nn.Module) -> None:
    """Refuses weights in few bits.

    Raises:
        ModelError: quantized weights cannot be trained.
    """
    quantized = getattr(skeleton.config, "quantization_config", None)
    if quantized:
        method = quantized.get("quant_method", "unknown method")
        raise ModelError(
            f"the model is quantized ({method}), and only an adapter can be trained: give `--train_type lora`"
        )


def checkpoint_of_a_model(checkpoint: Path, training: str) -> Path:
    """The checkpoint, from which the model is loaded.

    Raises:
        ModelError: it is no model.
    """
    if not (checkpoint / "config.json").is_file():
        raise ModelError(f"the checkpoint {checkpoint.name} has no config.json: it is not one of a {training} training")
    return checkpoint


def save_model(model: Any, out: Path) -> None:
    """Writes configuration and safetensors."""
    model.save_pretrained(out, max_shard_size=SHARD_SIZE)


def complete_model(base: Path, out: Path) -> None:
    """Adds the tokenizer and, as they were, the generation configuration and the use of a cache."""
    from stages.sources.model_folder import read_json
    from stages.training.companions import link_companions

    config = read_json(out / "config.json") | {"use_cache": read_json(base / "config.json").get("use_cache", True)}
    (out / "config.json").unlink()  # it may be a link to a checkpoint's
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (out / "generation_config.json").unlink(missing_ok=True)
    link_companions(base, out)

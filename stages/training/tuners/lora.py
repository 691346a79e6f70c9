"""LoRA (arXiv 2106.09685), rsLoRA (arXiv 2312.03732) and DoRA (arXiv 2402.09353), with peft: `--train_type lora`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ArgumentsError, ModelError
from stages.training.tuners import Tuner

if TYPE_CHECKING:
    from torch import nn

    from stages.arguments import TrainArguments

__all__ = ["LoraTuner"]


@dataclass(frozen=True)
class LoraTuner(Tuner):
    """Trains low-rank matrices beside frozen weights; leaves a PEFT folder."""

    arguments: TrainArguments

    def check(self, skeleton: nn.Module) -> None:
        """Finds every module that is named."""
        self._config(skeleton)

    def weights(self, base: Path, checkpoint: Path | None) -> Path:
        """The base model, whose weights never change."""
        return base

    def prepare(self, model: Any) -> Any:
        """Attaches adapters; their start is drawn from torch's random state."""
        import torch
        from peft import get_peft_model

        tuned = get_peft_model(model, self._config(model), autocast_adapter_dtype=False)
        if self.arguments.lora_dtype is not None:
            for name, parameter in tuned.named_parameters():
                if ".lora_" in name:
                    parameter.data = parameter.data.to(getattr(torch, self.arguments.lora_dtype))
        for parameter in tuned.parameters():  # float16 has no room for the steps of an optimizer
            if parameter.requires_grad and parameter.dtype == torch.float16:
                parameter.data = parameter.data.float()
        tuned.enable_input_require_grads()  # or gradient checkpointing would find nothing to go back to
        return tuned

    def load(self, model: Any, checkpoint: Path) -> None:
        """Puts a checkpoint's matrices into the model, in the data types that it has.

        Raises:
            ModelError: the checkpoint is no adapter, or of another shape.
        """
        from peft import get_peft_model_state_dict, set_peft_model_state_dict
        from safetensors.torch import load_file

        path = checkpoint / "adapter_model.safetensors"
        if not path.is_file():
            raise ModelError(f"the checkpoint {checkpoint.name} has no {path.name}: it is not one of a LoRA training")
        self._check_scale(checkpoint)
        stored = load_file(path)
        wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
        for name in sorted(wanted.keys() | stored.keys()):
            here, there = (tuple(tensors[name].shape) if name in tensors else None for tensors in (wanted, stored))
            if here != there and (here is not None or "base_layer" not in name):
                raise ModelError(
                    f"the checkpoint {checkpoint.name} is of another adapter: {name} is {there or 'not there'}, "
                    f"these arguments make it {here or 'absent'}"
                )
        set_peft_model_state_dict(model, stored)

    def _check_scale(self, checkpoint: Path) -> None:
        """The same matrices under another scale are another model; their shapes would not tell."""
        from stages.sources.model_folder import read_json

        if not (checkpoint / "adapter_config.json").is_file():
            return
        config = read_json(checkpoint / "adapter_config.json")
        for name in ("lora_alpha", "use_rslora"):
            there, here = config.get(name, getattr(self.arguments, name)), getattr(self.arguments, name)
            if there != here:
                raise ModelError(
                    f"the checkpoint {checkpoint.name} is of another adapter: its {name} is {there}, "
                    f"these arguments make it {here}"
                )

    def save(self, model: Any, out: Path) -> None:
        """Writes adapter_config.json and adapter_model.safetensors."""
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
        tensors = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
        out.mkdir(parents=True, exist_ok=True)
        save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
        config = _plain(model.peft_config["default"].to_dict()) | {
            "base_model_name_or_path": "",
            "inference_mode": True,
        }
        text = json.dumps(config, indent=2, sort_keys=True)
        (out / "adapter_config.json").write_text(text + "\n", encoding="utf-8")

    def complete(self, base: Path, out: Path) -> None:
        """A PEFT folder needs nothing more."""

    def _config(self, model: Any) -> Any:
        from peft import LoraConfig
        from transformers.pytorch_utils import Conv1D

        from stages.training.tuners.targets import find_modules_to_save, find_targets

        given = self.arguments
        targets = find_targets(model, given.target_modules, given.target_regex)
        saved = find_modules_to_save(model, given.modules_to_save)
        both = sorted(set(saved) & set(targets)) if isinstance(targets, list) else []
        if both:
            raise ArgumentsError(
                f"`--modules_to_save {both[0]}` trains it in full and `--target_modules` gives it an adapter: "
                "take it out of one of them"
            )
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=given.lora_rank,
            lora_alpha=given.lora_alpha,
            lora_dropout=given.lora_dropout,
            target_modules=targets,
            modules_to_save=saved or None,
            bias=given.lora_bias_trainable,
            init_lora_weights={"true": True, "false": False}.get(given.init_lora_weights, given.init_lora_weights),
            use_dora=given.use_dora,
            use_rslora=given.use_rslora,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        )
        if not hasattr(model.config, "quantization_config"):
            _skip_quantized_kinds(config)
        return config


def _skip_quantized_kinds(config: Any) -> None:
    """Spares 1.5 s and a banner: peft would import GPTQModel to ask of each layer whether it is one of its kind."""
    from peft.tuners.lora import Linear
    from torch import nn

    config._register_custom_module({nn.Linear: Linear})


def _plain(value: Any) -> Any:
    """As JSON; sets, which come in any order, sorted."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(_plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return getattr(value, "value", value)

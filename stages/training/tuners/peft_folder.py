"""What all tuners made of peft share: `class VeraTuner(PeftTuner): …` says only which configuration it has.

Their artifact is a PEFT folder: adapter_config.json and adapter_model.safetensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stages.errors import ArgumentsError, ModelError, UserError
from stages.training.tuners import Tuner

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stages.arguments import TrainArguments

__all__ = ["PeftTuner", "matched_modules", "plain", "sides", "swaps_sides"]

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class PeftTuner(Tuner):
    """Trains what peft attaches to frozen weights; leaves a PEFT folder."""

    arguments: TrainArguments

    METHOD: ClassVar[str] = ""
    """The method's name, for messages."""
    SAME: ClassVar[Sequence[str]] = ()
    """What of the configuration makes of the same tensors another model; their shapes would not tell."""
    FLOAT32: ClassVar[bool] = True
    """Whether what is trained is held in float32 whatever the base model's type; else in that type."""

    def config(self, model: Any) -> Any:
        """The configuration of peft for this model, whose weights need not be there.

        Raises:
            UserError: the model lacks a module that is named, or a setting does not fit it.
        """
        raise NotImplementedError

    def check(self, skeleton: nn.Module) -> None:
        """Refuses what peft could not attach."""
        self.config(skeleton)

    def weights(self, base: Path, checkpoint: Path | None) -> Path:
        """The base model, whose weights never change."""
        return base

    def prepare(self, model: Any) -> Any:
        """Attaches adapters; their start is drawn from torch's random state.

        Raises:
            UserError: see `config`; a layer is of a kind that peft has no such adapter for.
        """
        import torch
        from peft import get_peft_model

        from stages.serving.loading import import_gptqmodel
        from stages.training.unsloth_backend import attach_adapter

        try:
            # Packed weights may have any type, which says nothing of what stands beside them.
            in_float32 = self.FLOAT32 or getattr(model.config, "quantization_config", None) is not None
            config = self.config(model)
            if not getattr(config, "_custom_modules", None):
                import_gptqmodel()  # peft does, to ask for its kinds of layers, and its banner would go to stdout
            if self.arguments.tuner_backend == "unsloth":
                tuned = attach_adapter(model, config, self.arguments)
            else:
                tuned = get_peft_model(model, config, autocast_adapter_dtype=in_float32)
        except (TypeError, ValueError) as error:  # quantized layers of a kind that peft has no such adapter for
            if isinstance(error, UserError):
                raise
            raise ModelError(f"{self.METHOD} cannot be put onto this model: {' '.join(str(error).split())}") from None
        for parameter in tuned.parameters():  # float16 has no room for the steps of an optimizer
            if parameter.requires_grad and parameter.dtype == torch.float16:
                parameter.data = parameter.data.float()
        tuned.enable_input_require_grads()  # or gradient checkpointing would find nothing to go back to
        return tuned

    def load(self, model: Any, checkpoint: Path) -> None:
        """Puts a checkpoint's tensors into the model, in the data types that it has.

        Raises:
            ModelError: the checkpoint is no adapter, or of another shape or scale.
        """
        stored = self.stored_tensors(checkpoint)
        self.check_settings(model, checkpoint)
        stored, wanted = self.fitted(model, stored, checkpoint), self.tensors(model)
        for name in sorted(wanted.keys() | stored.keys()):
            here, there = (tuple(tensors[name].shape) if name in tensors else None for tensors in (wanted, stored))
            if here != there and (here is not None or "base_layer" not in name):
                raise ModelError(
                    f"the checkpoint {checkpoint.name} is of another adapter: {name} is {there or 'not there'}, "
                    f"these arguments make it {here or 'absent'}"
                )
        self.put(model, stored)

    def stored_tensors(self, checkpoint: Path) -> dict[str, Tensor]:
        """What a checkpoint holds.

        Raises:
            ModelError: it is no adapter's.
        """
        from safetensors.torch import load_file

        path = checkpoint / WEIGHTS
        if not path.is_file():
            raise ModelError(
                f"the checkpoint {checkpoint.name} has no {WEIGHTS}: it is not one of a {self.METHOD} training"
            )
        tensors: dict[str, Tensor] = load_file(path)
        return tensors

    def check_settings(self, model: Any, checkpoint: Path) -> None:
        """The same tensors under another scale are another model.

        Raises:
            ModelError: that is the case.
        """
        from stages.sources.model_folder import read_json

        if not (checkpoint / CONFIG).is_file():
            return
        stored, ours = read_json(checkpoint / CONFIG), self.described(model)
        for name in ("peft_type", *self.SAME):
            there, here = stored.get(name, ours[name]), ours[name]
            if there != here:
                raise ModelError(
                    f"the checkpoint {checkpoint.name} is of another adapter: its {name} is {there}, "
                    f"these arguments make it {here}"
                )

    def fitted(self, model: Any, tensors: dict[str, Tensor], checkpoint: Path) -> dict[str, Tensor]:
        """What a checkpoint holds, as the model has it in training."""
        return tensors

    def put(self, model: Any, tensors: dict[str, Tensor]) -> None:
        """Puts tensors that fit into the model."""
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, tensors)

    def tensors(self, model: Any) -> dict[str, Tensor]:
        """What is trained, and what else a checkpoint holds, under the names that peft writes."""
        from peft import get_peft_model_state_dict

        # Where the state is handed over, peft does not wonder at matrices of rank 0.
        tensors: dict[str, Tensor] = get_peft_model_state_dict(model, model.state_dict(), save_embedding_layers=False)
        return tensors

    def described(self, model: Any) -> dict[str, Any]:
        """The configuration that is written: nothing of this machine in it."""
        config: dict[str, Any] = plain(model.peft_config["default"].to_dict())
        return config | {"base_model_name_or_path": "", "inference_mode": True}

    def save(self, model: Any, out: Path) -> None:
        """Writes adapter_config.json and adapter_model.safetensors."""
        from safetensors.torch import save_file

        tensors, config = self.tensors(model), self.described(model)
        tensors = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
        out.mkdir(parents=True, exist_ok=True)
        save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
        text = json.dumps(config, indent=2, sort_keys=True)
        (out / CONFIG).write_text(text + "\n", encoding="utf-8")

    def complete(self, base: Path, out: Path) -> None:
        """A PEFT folder needs nothing more."""

    def saved_modules(self) -> Sequence[str]:
        """What is trained in full beside adapters, as `find_modules_to_save` takes it."""
        return self.arguments.modules_to_save

    def places(self, model: Any) -> dict[str, Any]:
        """What every configuration of peft has: the modules that get an adapter or are trained in full.

        Raises:
            ArgumentsError: a module is not there, or is to be trained in both ways.
        """
        from stages.training.classifier import HEADS, check_head
        from stages.training.tuners.targets import find_modules_to_save, find_targets

        given = self.arguments
        targets = find_targets(model, given.target_modules, given.target_regex)
        saved = find_modules_to_save(model, self.saved_modules())
        both = sorted(set(saved) & set(targets)) if isinstance(targets, list) else []
        if both:
            raise ArgumentsError(
                f"`--modules_to_save {both[0]}` trains it in full and `--target_modules` gives it an adapter: "
                "take it out of one of them"
            )
        if given.num_labels is not None:
            check_head(model)  # which peft trains in full, and stores
            if isinstance(targets, list) and set(HEADS) & set(targets):
                raise ArgumentsError("`--num_labels` trains the head in full: take it out of `--target_modules`")
        return {
            "task_type": "CAUSAL_LM" if given.num_labels is None else "SEQ_CLS",
            "target_modules": targets,
            "modules_to_save": saved or None,
            "bias": given.lora_bias_trainable,
        }

    def linear_targets(self, model: Any, targets: Sequence[str] | str, *, conv1d: bool = True) -> dict[str, nn.Module]:
        """The modules that get an adapter, for methods that know no other than linear layers.

        Args:
            model: whose modules are looked at.
            targets: what `places` has found.
            conv1d: whether GPT-2's linear layers, whose sides are swapped, will do.

        Raises:
            ArgumentsError: another kind is among them.
        """
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        found = matched_modules(model, targets)
        for path, module in found.items():
            if isinstance(module, nn.Embedding | nn.Conv1d | nn.Conv2d | nn.Conv3d) or (
                isinstance(module, Conv1D) and not conv1d
            ):
                raise ArgumentsError(
                    f"{self.METHOD} adapts linear layers alone, and {path} is of type {type(module).__name__}: "
                    "leave it out of `--target_modules` or `--target_regex`"
                )
        return found


def matched_modules(model: Any, targets: Sequence[str] | str) -> dict[str, nn.Module]:
    """What peft takes `target_modules` for: a regular expression for whole paths, or the ends of paths."""
    if isinstance(targets, str):
        return {path: module for path, module in model.named_modules() if re.fullmatch(targets, path)}
    return {
        path: module
        for path, module in model.named_modules()
        if any(path == name or path.endswith(f".{name}") for name in targets)
    }


def sides(module: Any) -> tuple[int, int]:
    """Outputs and inputs of a linear layer, also of one whose weights are packed; for Conv1D the other way round."""
    if hasattr(module, "in_features"):
        return int(module.out_features), int(module.in_features)
    first, second = module.weight.shape
    return int(first), int(second)


def swaps_sides(model: Any) -> bool:
    """Whether linear layers store inputs first, as GPT-2's do."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.modules())


def plain(value: Any) -> Any:
    """As JSON; sets, which come in any order, sorted."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return getattr(value, "value", value)

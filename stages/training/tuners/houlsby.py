"""Adapters (Houlsby et al., arXiv 1902.00751): small networks in a decoder's layers: `--train_type adapter`.

`load_houlsby(model, Path("adapter"))` puts what training has left onto the model that it was trained on; SWIFT opens
the same folder: `Swift.from_pretrained(model, parent, {folder: "default"})`. As in the paper, one network follows the
attention and one the feed-forward part of every layer, before the residual sum: h + W₂ gelu(W₁ h), 128 wide as in
SWIFT. W₂ starts at zero, so the first step's outputs are the base's.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ArgumentsError, ModelError
from stages.training.tuners import Tuner
from stages.training.tuners.layers import decoder_layers, text_config

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stages.arguments import TrainArguments

__all__ = ["HoulsbyTuner", "load_houlsby"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LENGTH, ACTIVATION = 128, "gelu"
CHILD = "adapter_default"
ATTENTION = ("self_attn", "linear_attn", "attn", "attention", "self_attention")
FEED_FORWARD = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")


@dataclass(frozen=True)
class HoulsbyTuner(Tuner):
    """Trains the small networks beside frozen weights."""

    arguments: TrainArguments

    def check(self, skeleton: nn.Module) -> None:
        """Finds the parts that are followed by a network."""
        if getattr(skeleton.config, "quantization_config", None):
            raise ModelError(
                "the model is quantized: `--train_type adapter` needs floats, `--train_type lora` does not"
            )
        given = self.arguments
        for flag, wrong in (
            (f"--modules_to_save {' '.join(given.modules_to_save)}", given.modules_to_save),
            (f"--lora_bias_trainable {given.lora_bias_trainable}", given.lora_bias_trainable != "none"),
        ):
            if wrong:
                raise ArgumentsError(f"`{flag}` does not go with `--train_type adapter`: drop one of them")
        _places(skeleton, self._targets(skeleton))

    def weights(self, base: Path, checkpoint: Path | None) -> Path:
        """The base model, whose weights never change."""
        return base

    def prepare(self, model: Any) -> Any:
        """Puts the networks in; their start is drawn from torch's random state."""
        model.requires_grad_(False)
        _attach(model, self._config(model))
        model.enable_input_require_grads()
        return model

    def load(self, model: Any, checkpoint: Path) -> None:
        """Puts a checkpoint's networks into the model.

        Raises:
            ModelError: it has none, or others.
        """
        there, here = _read_config(checkpoint), self._config(model)
        for name in sorted(here):
            if there.get(name) != here[name]:
                raise ModelError(
                    f"the checkpoint {checkpoint.name} is of another adapter: its {name} is {there.get(name)}, "
                    f"these arguments make it {here[name]}"
                )
        _load_weights(model, checkpoint)

    def save(self, model: Any, out: Path) -> None:
        """Writes adapter_config.json and adapter_model.safetensors."""
        from safetensors.torch import save_file

        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in _tensors(model).items()}
        out.mkdir(parents=True, exist_ok=True)
        save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
        text = json.dumps(self._config(model), indent=2, sort_keys=True)
        (out / CONFIG).write_text(text + "\n", encoding="utf-8")

    def complete(self, base: Path, out: Path) -> None:
        """It needs nothing more."""

    def _config(self, model: Any) -> dict[str, Any]:
        """As SWIFT names things."""
        return {
            "swift_type": "ADAPTER",
            "dim": text_config(model).hidden_size,
            "target_modules": self._targets(model),
            "hidden_pos": 0,
            "method_name": "forward",
            "adapter_length": LENGTH,
            "act_layer": ACTIVATION,
        }

    def _targets(self, model: Any) -> str:
        """A regular expression for the paths of the parts."""
        given = self.arguments
        if given.target_regex is not None:
            return given.target_regex
        if given.target_modules != ["all-linear"]:
            return rf"(.*\.)?({'|'.join(re.escape(name) for name in given.target_modules)})"
        path, layers = decoder_layers(model)
        names: set[str] = set()
        for number, layer in enumerate(layers):
            parts = [name for name, _ in layer.named_children()]
            for kind, known in (("attention", ATTENTION), ("feed-forward", FEED_FORWARD)):
                found = [name for name in parts if name in known]
                if not found:
                    raise ModelError(
                        f"which part of {path}.{number} is its {kind} part is not known; it has {', '.join(parts)}: "
                        "name those to be followed by an adapter with `--target_modules`"
                    )
                names |= set(found)
        return rf"{re.escape(path)}\.\d+\.({'|'.join(sorted(names))})"


def load_houlsby(model: Any, folder: Path) -> Any:
    """Puts trained networks into a base model.

    Raises:
        ModelError: the folder has none, or those of another model.
    """
    _attach(model, _read_config(folder))
    _load_weights(model, folder)
    return model.eval()


def _places(model: Any, targets: str) -> dict[str, nn.Module]:
    """The parts that are followed by a network.

    Raises:
        ArgumentsError: there is none, or one is of another width.
    """
    found = {path: module for path, module in model.named_modules() if path and re.fullmatch(targets, path)}
    if not found:
        path, layers = decoder_layers(model)
        parts = ", ".join(name for name, _ in layers[0].named_children())
        raise ArgumentsError(f"`--target_modules` or `--target_regex`: no module is called so; {path}.0 has {parts}")
    hidden = text_config(model).hidden_size
    for path, module in found.items():
        width = getattr(module, "out_features", hidden)
        if width != hidden:
            raise ArgumentsError(
                f"an adapter takes the model's {hidden} features, and {path} gives {width}: leave it out"
            )
    return found


def _attach(model: Any, config: dict[str, Any]) -> None:
    import torch
    from torch import nn
    from transformers.activations import ACT2FN

    class Adapter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear1 = nn.Linear(config["dim"], config["adapter_length"])
            self.act = ACT2FN[config["act_layer"]]
            self.linear2 = nn.Linear(config["adapter_length"], config["dim"])
            nn.init.xavier_uniform_(self.linear1.weight)
            for start in (self.linear1.bias, self.linear2.weight, self.linear2.bias):
                nn.init.zeros_(start)

        def forward(self, states: Tensor) -> Tensor:
            inner = states.to(self.linear1.weight.dtype)
            changed: Tensor = inner + self.linear2(self.act(self.linear1(inner)))
            return changed.to(states.dtype)

    def follow(module: Any, inputs: Any, output: Any) -> Any:
        adapter = getattr(module, CHILD)
        if isinstance(output, torch.Tensor):
            return adapter(output)
        first = config["hidden_pos"]
        return type(output)([*output[:first], adapter(output[first]), *output[first + 1 :]])

    for module in _places(model, config["target_modules"]).values():
        device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
        setattr(module, CHILD, Adapter().to(device))
        module.register_forward_hook(follow)


def _tensors(model: Any) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in sorted(model.state_dict().items()) if f".{CHILD}." in f".{name}"}


def _read_config(folder: Path) -> dict[str, Any]:
    from stages.sources.model_folder import read_json

    config = read_json(folder / CONFIG)
    if config.get("swift_type") != "ADAPTER":
        kind = config.get("swift_type") or config.get("peft_type")
        raise ModelError(f"{folder.name} is an adapter of type {kind}, not one of `--train_type adapter`")
    return config


def _load_weights(model: Any, folder: Path) -> None:
    from safetensors.torch import load_file

    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder.name} has no {WEIGHTS}: it is not one of an adapter training")
    stored, wanted = load_file(folder / WEIGHTS), _tensors(model)
    for name in sorted(wanted.keys() | stored.keys()):
        here, there = (tuple(tensors[name].shape) if name in tensors else None for tensors in (wanted, stored))
        if here != there:
            raise ModelError(
                f"{folder.name} is an adapter of another model: {name} is {there or 'not there'}, here it is "
                f"{here or 'absent'}"
            )
    model.load_state_dict(stored, strict=False)

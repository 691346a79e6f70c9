"""ReFT (arXiv 2404.03592), interventions on hidden states: `--train_type reft`.

`load_reft(model, Path("adapter"))` puts what training has left onto the model that it was trained on. Every token is
intervened on, as in SWIFT.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ArgumentsError, ModelError
from stages.training.tuners import Tuner
from stages.training.tuners.layers import decoder_layers, text_config

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stages.arguments import TrainArguments

__all__ = ["ReftTuner", "load_reft"]

CONFIG, WEIGHTS = "reft_config.json", "reft_model.safetensors"
MARK = ".reft."
TAKES = {
    "LoreftIntervention": ("dropout", "act_fn", "dtype"),
    "NoreftIntervention": ("dropout", "act_fn", "dtype", "add_bias"),
    "ConsreftIntervention": ("dtype",),
    "LobireftIntervention": ("dropout", "dtype"),
    "DireftIntervention": ("dropout", "act_fn", "dtype"),
    "NodireftIntervention": ("dropout", "act_fn", "dtype", "add_bias"),
}
"""What of `reft_args` each intervention makes use of."""
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class ReftTuner(Tuner):
    """Trains an intervention for each layer; leaves reft_config.json and reft_model.safetensors."""

    arguments: TrainArguments

    def check(self, skeleton: nn.Module) -> None:
        """Refuses layers that are not there, impossible ranks and settings that an intervention does not have."""
        path, layers = decoder_layers(skeleton)
        missing = [number for number in self.arguments.reft_layers or () if number >= len(layers)]
        if missing:
            raise ArgumentsError(f"`--reft_layers {missing[0]}`: {path} has layers 0 to {len(layers) - 1}")
        hidden = text_config(skeleton).hidden_size
        if self.arguments.reft_rank > hidden:
            raise ArgumentsError(f"`--reft_rank {self.arguments.reft_rank}` is above the model's hidden size, {hidden}")
        _check_settings(self.arguments.reft_intervention_type, self.arguments.reft_args or {})

    def weights(self, base: Path, checkpoint: Path | None) -> Path:
        """The base model, whose weights never change."""
        return base

    def prepare(self, model: Any) -> Any:
        """Puts interventions onto the model; their start is drawn from torch's random state."""
        model.requires_grad_(False)
        _attach(model, self._config())
        return model

    def load(self, model: Any, checkpoint: Path) -> None:
        """Puts a checkpoint's interventions into the model.

        Raises:
            ModelError: it has none, or others.
        """
        there, here = _read_config(checkpoint), self._config()
        for name in sorted(here):
            if there.get(name) != here[name]:
                raise ModelError(
                    f"the checkpoint {checkpoint.name} is of another ReFT: its {name} is {there.get(name)}, "
                    f"these arguments make it {here[name]}"
                )
        _load_weights(model, checkpoint)

    def save(self, model: Any, out: Path) -> None:
        """Writes the interventions and what describes them."""
        from safetensors.torch import save_file

        out.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: tensor.detach().cpu().contiguous().clone()
            for name, tensor in sorted(model.state_dict().items())
            if MARK in name
        }
        save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
        (out / CONFIG).write_text(json.dumps(self._config(), indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def complete(self, base: Path, out: Path) -> None:
        """It needs nothing more."""

    def _config(self) -> dict[str, Any]:
        layers = self.arguments.reft_layers
        return {
            "reft_type": self.arguments.reft_intervention_type,
            "rank": self.arguments.reft_rank,
            "layers": sorted(set(layers)) if layers else None,
            "reft_args": self.arguments.reft_args or {},
        }


def load_reft(model: Any, folder: Path) -> Any:
    """Puts trained interventions onto a base model.

    Raises:
        ModelError: the folder is no ReFT, or one of another model.
    """
    _attach(model, _read_config(folder))
    _load_weights(model, folder)
    return model.eval()


def _check_settings(kind: str, settings: dict[str, Any]) -> None:
    from transformers.activations import ACT2FN

    for name, value in settings.items():
        if name not in TAKES[kind]:
            raise ArgumentsError(f"`--reft_args` {name}: {kind} takes {', '.join(TAKES[kind])}")
        if name == "dropout" and not (isinstance(value, int | float) and 0 <= value < 1):
            raise ArgumentsError(f"`--reft_args` dropout {value}: give a share from 0 to below 1")
        if name == "act_fn" and value not in ACT2FN:
            raise ArgumentsError(f"`--reft_args` act_fn {value}: choose from {', '.join(sorted(ACT2FN))}")
        if name == "dtype" and str(value).removeprefix("torch.") not in DTYPES:
            raise ArgumentsError(f"`--reft_args` dtype {value}: choose from {', '.join(DTYPES)}")
        if name == "add_bias" and not isinstance(value, bool):
            raise ArgumentsError(f"`--reft_args` add_bias {value}: give true or false")
    if "add_bias" in TAKES[kind] and "add_bias" not in settings:
        example = '{"add_bias": true}'
        raise ArgumentsError(f"`--reft_intervention_type {kind}` needs add_bias: give `--reft_args '{example}'`")


def _attach(model: Any, config: dict[str, Any]) -> None:
    layers = decoder_layers(model)[1]
    hidden = text_config(model).hidden_size
    for number, layer in enumerate(layers):
        if config["layers"] is not None and number not in config["layers"]:
            continue
        like = next(layer.parameters())
        layer.reft = _make_intervention(config, hidden).to(like.device)
        layer.register_forward_hook(_intervene)


def _intervene(layer: Any, inputs: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (layer.reft(output[0]), *output[1:])
    return layer.reft(output)


def _make_intervention(config: dict[str, Any], hidden: int) -> Any:
    """One of the paper's and pyreft's interventions on hidden states h of any shape [..., hidden].

    R has orthonormal rows, and is float32; W, b and all else are in `dtype`:
    LoReFT h + R^T(Wh + b - Rh), NoReFT h + P^T(Wh + b - Ph), ConsReFT h + R^T(b - Rh), LobiReFT h + R^T b,
    DiReFT h + R^T(Wh + b), NodiReFT h + P^T(Wh + b). P is any matrix; `add_bias` gives Ph a bias, which NodiReFT, where
    no Ph is, has none of.
    """
    import torch
    from torch import nn
    from transformers.activations import ACT2FN

    kind, rank, settings = config["reft_type"], config["rank"], config["reft_args"]
    dtype = getattr(torch, str(settings.get("dtype", "float32")).removeprefix("torch."))

    class Rotation(nn.Module):
        """Orthonormal rows as a product of reflections; torch's own parametrization does not bear weight decay."""

        def __init__(self) -> None:
            super().__init__()
            start = torch.geqrf(torch.randn(hidden, rank)).a.tril(-1)
            self.reflections = nn.Parameter(start)
            self.bias = None

        @property
        def weight(self) -> Tensor:
            below = self.reflections.tril(-1)
            columns: Tensor = torch.linalg.householder_product(below, 2 / (1 + below.square().sum(0)))
            return columns.T

    class Intervention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            biased = bool(settings.get("add_bias")) and kind == "NoreftIntervention"
            free = kind in ("NoreftIntervention", "NodireftIntervention")
            self.projection: Any = nn.Linear(hidden, rank, bias=biased, dtype=dtype) if free else Rotation()
            if kind in ("ConsreftIntervention", "LobireftIntervention"):
                self.source: Any = nn.Parameter(torch.rand(rank, dtype=dtype))
            else:
                self.source = nn.Linear(hidden, rank, dtype=dtype)
            self.act = ACT2FN[settings.get("act_fn") or "linear"]
            self.dropout = nn.Dropout(settings.get("dropout", 0.0))

        def forward(self, states: Tensor) -> Any:
            weight: Tensor = self.projection.weight  # a rotation is computed each time it is asked for
            source = self.source if isinstance(self.source, nn.Parameter) else self.act(self.source(states.to(dtype)))
            if kind in ("LoreftIntervention", "NoreftIntervention", "ConsreftIntervention"):
                source = source - nn.functional.linear(states.to(weight.dtype), weight, self.projection.bias)
            return self.dropout(states + (source.to(weight.dtype) @ weight).to(states.dtype))

    return Intervention()


def _read_config(folder: Path) -> dict[str, Any]:
    from stages.sources.model_folder import read_json

    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"the checkpoint {folder.name} has no {name}: it is not one of a ReFT training")
    config: dict[str, Any] = read_json(folder / CONFIG)
    return config


def _load_weights(model: Any, folder: Path) -> None:
    from safetensors.torch import load_file

    stored = load_file(folder / WEIGHTS)
    wanted = {name: tensor for name, tensor in model.state_dict().items() if MARK in name}
    for name in sorted(wanted.keys() | stored.keys()):
        here, there = (tuple(tensors[name].shape) if name in tensors else None for tensors in (wanted, stored))
        if here != there:
            raise ModelError(
                f"{folder.name} is of another model: {name} is {there or 'not there'}, here {here or 'none'}"
            )
    model.load_state_dict(stored, strict=False)

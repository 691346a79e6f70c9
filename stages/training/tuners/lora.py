"""LoRA (arXiv 2106.09685), rsLoRA (2312.03732), DoRA (2402.09353), PiSSA (2404.02948): `--train_type lora`.

PiSSA trains the strongest directions of the base's own weights: with A₀B₀ taken out of W, what is left is frozen. So
that nobody needs that rest, an adapter to W itself is stored: AB − A₀B₀, which is LoRA of twice the rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt
from typing import TYPE_CHECKING, Any, ClassVar

from stages.errors import ArgumentsError, ModelError
from stages.training.quantized import adapter_kinds
from stages.training.tuners.peft_folder import PeftTuner, sides, swaps_sides

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["LoraTuner"]


@dataclass(frozen=True)
class LoraTuner(PeftTuner):
    """Trains low-rank matrices beside frozen weights."""

    taken_out: dict[str, Tensor] = field(default_factory=dict, init=False)
    """PiSSA: A₀ and B₀, under the names that peft writes."""

    METHOD: ClassVar[str] = "LoRA"
    SAME: ClassVar[Sequence[str]] = ("lora_alpha", "use_rslora")
    FLOAT32: ClassVar[bool] = False

    def config(self, model: Any) -> Any:
        """See `PeftTuner`."""
        from peft import LoraConfig

        given = self.arguments
        config = LoraConfig(
            **self.places(model),
            r=given.lora_rank,
            lora_alpha=given.lora_alpha,
            lora_dropout=given.lora_dropout,
            init_lora_weights={"true": True, "false": False}.get(given.init_lora_weights, given.init_lora_weights),
            use_dora=given.use_dora,
            use_rslora=given.use_rslora,
            fan_in_fan_out=swaps_sides(model),
        )
        if self._pissa:
            self._check_pissa(model, config.target_modules)
        config._register_custom_module(adapter_kinds(model))
        return config

    def prepare(self, model: Any) -> Any:
        """See `PeftTuner`; `lora_dtype` casts the matrices."""
        import torch

        tuned = super().prepare(model)
        if self.arguments.lora_dtype is not None:
            for name, parameter in tuned.named_parameters():
                if ".lora_" in name:
                    dtype = getattr(torch, self.arguments.lora_dtype)
                    parameter.data = parameter.data.to(torch.float32 if dtype == torch.float16 else dtype)
        if self._pissa:
            start = super().tensors(tuned)
            self.taken_out.update({name: start[name].detach().clone() for name in start if _is_matrix(name)})
        return tuned

    def tensors(self, model: Any) -> dict[str, Tensor]:
        """See `PeftTuner`; of PiSSA, an adapter to the base as it was: [A; A₀] and [B, −B₀]."""
        import torch

        tensors = super().tensors(model)
        for name, start in self.taken_out.items():
            if ".lora_A." in name:
                tensors[name] = torch.cat([tensors[name], start], dim=0)
            else:
                tensors[name] = torch.cat([tensors[name], -start], dim=1)
        return tensors

    def described(self, model: Any) -> dict[str, Any]:
        """See `PeftTuner`; twice the rank needs another alpha for the same scale."""
        config = super().described(model)
        if self._pissa:
            alpha = config["lora_alpha"] * (sqrt(2) if config["use_rslora"] else 2)
            config |= {"r": 2 * config["r"], "lora_alpha": alpha, "init_lora_weights": True}
        return config

    def put(self, model: Any, tensors: dict[str, Tensor]) -> None:
        """See `PeftTuner`; of PiSSA, what the checkpoint's start took out of the base is taken out here."""
        tensors = dict(tensors)
        started = {}
        for name in self.taken_out:
            split, sign = (0, 1) if ".lora_A." in name else (1, -1)
            tensors[name], second = tensors[name].chunk(2, dim=split)
            started[name] = sign * second
        self._take_out(model, started)
        super().put(model, tensors)

    def _take_out(self, model: Any, started: dict[str, Tensor]) -> None:
        """Makes `started` the start. Nothing changes where it is the same, as it is when a run is resumed."""
        for name, first in started.items():
            if ".lora_A." not in name:
                continue
            other = name.replace(".lora_A.", ".lora_B.")
            pairs = ((self.taken_out[other], self.taken_out[name]), (started[other], first))
            if all(ours.equal(theirs.to(ours)) for ours, theirs in zip(*pairs, strict=True)):
                continue
            layer = model.get_submodule(name.partition(".lora_A.")[0])
            ours, theirs = (second.float() @ first.float() for second, first in pairs)
            change = layer.scaling["default"] * (ours - theirs)
            weight = layer.get_base_layer().weight
            weight.data = (weight.data.float() + (change.T if layer.fan_in_fan_out else change)).to(weight.dtype)
        for name, tensor in started.items():
            self.taken_out[name] = tensor.to(self.taken_out[name]).clone()

    @property
    def _pissa(self) -> bool:
        return self.arguments.init_lora_weights.startswith("pissa")

    def _check_pissa(self, model: Any, targets: Any) -> None:
        start = self.arguments.init_lora_weights
        quantized = getattr(model.config, "quantization_config", None)
        if quantized:
            raise ModelError(
                f"the model is quantized, and `--init_lora_weights {start}` takes its start out of float weights: give "
                "the float model, or another start"
            )
        targets = targets if isinstance(targets, str) else sorted(targets)
        head = model.get_output_embeddings()
        tied = head is not None and model.get_input_embeddings().weight is head.weight
        for path, module in self.linear_targets(model, targets).items():
            if tied and module is head:
                raise ArgumentsError(
                    f"`--init_lora_weights {start}` would change the input embedding, whose weights {path} shares: "
                    f"take {path} out of `--target_modules`, or choose another start"
                )
            smaller = min(sides(module))
            if self.arguments.lora_rank > smaller:
                raise ArgumentsError(
                    f"`--lora_rank {self.arguments.lora_rank}`: {path} has no more than {smaller} directions, which "
                    f"`--init_lora_weights {start}` could start from: lower it"
                )


def _is_matrix(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name

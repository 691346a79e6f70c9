"""How much an optimizer remembers: `state_bytes(arguments, model)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.arguments import TrainArguments

__all__ = ["state_bytes"]

SMALL = 4096
"""A tensor with fewer values is kept in 32 bits by optimizers in 8 or 4."""
MOMENTS = {
    "adamw": 2.0,
    "ademamix": 3.0,
    "lion": 1.0,
    "sgd": 0.0,
    "adagrad": 1.0,
    "rmsprop": 1.0,
    "lomo": 0.0,
    "adalomo": 0.0,
    "grokadamw": 3.0,
    "schedule_free_radam": 2.0,
    "schedule_free_adamw": 2.0,
    "schedule_free_sgd": 1.0,
    "stable_adamw": 2.0,
    "adafactor": 0.0,
}
"""Tensors of a parameter's size."""


def state_bytes(arguments: TrainArguments, model: Any) -> int:
    """Of all parameters that are trained.

    Args:
        arguments: which optimizer.
        model: prepared; its tensors may be on the meta device.
    """
    low = _projected(arguments, model)
    total = 0
    for parameter in model.parameters():
        if parameter.requires_grad or arguments.lisa_activated_layers:  # in turn all layers
            total += low[id(parameter)] if id(parameter) in low else _of(arguments.optim, parameter)
    return total


def _of(optim: str, parameter: Any) -> int:
    name = optim.removeprefix("paged_")
    moments = next((MOMENTS[kind] for kind in sorted(MOMENTS, key=len, reverse=True) if name.startswith(kind)), 2.0)
    if name.startswith("adafactor") and parameter.dim() > 1:
        return int((parameter.shape[0] + parameter.shape[-1]) * parameter.element_size())
    size: int = parameter.element_size()
    if name.endswith(("8bit", "4bit")):
        size = 1 if parameter.numel() >= SMALL else 4
    return int(moments * size * parameter.numel())


def _projected(arguments: TrainArguments, model: Any) -> dict[int, int]:
    """GaLore's: two moments in low rank, and what projects to it."""
    if not arguments.use_galore:
        return {}
    from stages.training.optimizers.galore import projected_modules

    found = {}
    for module in projected_modules(model, arguments).values():
        weight: Any = module.weight
        rows, columns = weight.shape
        short, long = min(rows, columns), max(rows, columns)
        rank = min(arguments.galore_rank, short)
        size = weight.element_size()
        moments, sides = 2 * rank * long, rank * short
        if arguments.galore_quantization:
            bits = arguments.galore_proj_bits if arguments.galore_proj_quant else 8 * size
            found[id(weight)] = moments + sides * bits // 8
        else:
            found[id(weight)] = (moments + sides) * size
    return found

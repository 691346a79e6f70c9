"""Optimizers that the Trainer does not know: `choose_optimizer(arguments)`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.arguments import TrainArguments

__all__ = ["OptimizerMaker", "choose_optimizer"]

OptimizerMaker = Callable[[Any, Any], tuple[Any, Any]]
"""Makes of a prepared model and the Trainer's settings an optimizer, and a scheduler or None."""


def choose_optimizer(arguments: TrainArguments) -> OptimizerMaker | None:
    """What makes the optimizer; None: the Trainer. LoRA+ goes before GaLore, as in SWIFT."""
    if arguments.lorap_lr_ratio is not None:
        from stages.training.optimizers.lorap import make_lorap

        return partial(make_lorap, arguments.lorap_lr_ratio)
    if arguments.use_galore:
        from stages.training.optimizers.galore import make_galore

        return partial(make_galore, arguments)
    return None

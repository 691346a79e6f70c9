"""Optimizers that the Trainer does not know: `choose_optimizer(arguments)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.arguments import TrainArguments

__all__ = ["OptimizerMaker", "choose_optimizer"]

OptimizerMaker = Callable[[Any, Any], tuple[Any, Any]]
"""Makes of a prepared model and the Trainer's settings an optimizer, and a scheduler or None."""


def choose_optimizer(arguments: TrainArguments) -> OptimizerMaker | None:
    """What makes the optimizer; None: the Trainer."""
    return None

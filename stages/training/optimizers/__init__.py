"""Optimizers that the Trainer does not know: `choose_optimizer(arguments, rows)`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.arguments import TrainArguments

__all__ = ["OptimizerMaker", "choose_optimizer"]

OptimizerMaker = Callable[[Any, Any], tuple[Any, Any]]
"""Makes of a prepared model and the Trainer's settings an optimizer, and a scheduler or None."""


def choose_optimizer(arguments: TrainArguments, rows: Any) -> OptimizerMaker | None:
    """What makes the optimizer; None: the Trainer. LoRA+ goes before GaLore, GaLore before `optimizer`, as in SWIFT.

    Args:
        arguments: what the user gave; the plugins have been loaded.
        rows: what is trained on, for a plugin's factory.

    Raises:
        ArgumentsError: no plugin registers the `optimizer`.
    """
    name = arguments.optimizer
    if arguments.lorap_lr_ratio is not None:
        from stages.training.optimizers.lorap import make_lorap

        _say_what_wins(name, f"--lorap_lr_ratio {arguments.lorap_lr_ratio:g}")
        return partial(make_lorap, arguments.lorap_lr_ratio)
    if arguments.use_galore:
        from stages.training.optimizers.galore import make_galore

        _say_what_wins(name, "--use_galore true")
        return partial(make_galore, arguments)
    if name is None:
        return None
    from stages.training.optimizers.registered import make_registered
    from stages.training.plugins import OPTIMIZERS, check_registered

    check_registered("optimizer", name)
    return partial(make_registered, OPTIMIZERS[name], name, rows)


def _say_what_wins(name: str | None, flag: str) -> None:
    if name is not None:
        logging.getLogger("martlet").info("train: %s goes before --optimizer %s, which makes nothing", flag, name)

"""The optimizer of a plugin's factory, `--optimizer NAME`: `make_registered(factory, "mine", rows, …)`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from stages.errors import ArgumentsError
from stages.training.optimizers.state import writes_plain_state
from stages.training.plugins import OptimizerFactory, blamed

if TYPE_CHECKING:
    from transformers import Seq2SeqTrainingArguments

__all__ = ["make_registered"]

logger = logging.getLogger("martlet")


def make_registered(
    factory: OptimizerFactory, name: str, rows: Any, model: Any, settings: Seq2SeqTrainingArguments
) -> tuple[Any, Any]:
    """The optimizer, and the scheduler or None.

    Args:
        factory: the plugin's.
        name: what it is registered as.
        rows: the training rows.
        model: prepared, on its device.
        settings: of the Trainer.

    Raises:
        ArgumentsError: the factory fails, or gives something else.
    """
    import torch

    with blamed("optimizer", name):
        made = factory(settings, model, rows)
    optimizer, scheduler = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(optimizer, torch.optim.Optimizer):
        given = f"({', '.join(type(one).__name__ for one in made)})" if isinstance(made, tuple) else _kind(made)
        raise ArgumentsError(
            f"`--optimizer {name}`: the factory gave {given}, and not an optimizer of torch, or (optimizer, scheduler)"
        )
    if scheduler is not None and not all(hasattr(scheduler, part) for part in ("step", "state_dict", "get_last_lr")):
        raise ArgumentsError(f"`--optimizer {name}`: the factory gave {_kind(scheduler)} as scheduler")
    _check_parameters(name, optimizer, model)
    writes_plain_state(optimizer)
    return optimizer, scheduler


def _kind(made: Any) -> str:
    return "None" if made is None else f"a {type(made).__name__}"


def _check_parameters(name: str, optimizer: Any, model: Any) -> None:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trained = {id(parameter): path for path, parameter in model.named_parameters() if parameter.requires_grad}
    if not held & trained.keys():
        raise ArgumentsError(f"`--optimizer {name}`: the optimizer has none of the parameters that are to be trained")
    left = [path for one, path in trained.items() if one not in held]
    if left:
        logger.warning(
            "train: --optimizer %s leaves %d of %d trained parameters as they are: %s",
            name,
            len(left),
            len(trained),
            left[0],
        )

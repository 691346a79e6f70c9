"""The optimizer that `optim` names, as a class: `plain_optimizer(settings, "--use_galore")`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.errors import ArgumentsError

if TYPE_CHECKING:
    from transformers import Seq2SeqTrainingArguments

__all__ = ["plain_optimizer"]


def plain_optimizer(settings: Seq2SeqTrainingArguments, flag: str) -> tuple[type[Any], dict[str, Any]]:
    """Class and settings, among them `lr`.

    Args:
        settings: of the Trainer.
        flag: what groups the parameters in its own way.

    Raises:
        ArgumentsError: the optimizer groups them in its own way, too.
    """
    import torch
    from transformers import Trainer

    name = getattr(settings.optim, "value", settings.optim)
    kind, given = None, {}
    if not any(part in name for part in ("galore", "apollo", "lomo", "muon")):
        kind, given = Trainer.get_optimizer_cls_and_kwargs(settings)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise ArgumentsError(f"`{flag}` and `--optim {name}` both group the parameters: drop one of them")
    return kind, dict(given)

"""LoRA+ (arXiv 2402.12354), with peft: `make_lorap(ratio, model, settings)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.training.optimizers.plain import plain_optimizer

if TYPE_CHECKING:
    from transformers import Seq2SeqTrainingArguments

__all__ = ["make_lorap"]


def make_lorap(ratio: float, model: Any, settings: Seq2SeqTrainingArguments) -> tuple[Any, None]:
    """An optimizer that moves B, and all vectors, `ratio` times as fast as A; matrices of embeddings at 1e-6.

    Raises:
        ArgumentsError: `optim` is not one that takes groups of parameters.
    """
    from peft.optimizers import create_loraplus_optimizer

    kind, given = plain_optimizer(settings, "--lorap_lr_ratio")
    rates = {"loraplus_lr_ratio": ratio, "loraplus_weight_decay": settings.weight_decay}
    return create_loraplus_optimizer(model, kind, **(given | rates)), None

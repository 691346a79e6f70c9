"""The loss of the tokens that have a label, which may weigh unequally: `token_loss(logits, targets, weights, 12)`.

Logits are asked of a model only where the next token has a label: `logits_to_keep=predicting(labels)`.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from stages.training.rows import IGNORED

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["predicting", "shifted", "takes_positions", "token_loss"]


def takes_positions(model: Any) -> bool:
    """Whether a model, perhaps one of PEFT's, computes logits at those positions alone that it is asked for."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters


def predicting(labels: Tensor) -> Tensor:
    """Where a token is predicted: (rows, tokens), true at a position whose next token has a label."""
    return shifted(labels, IGNORED) != IGNORED


def shifted(values: Tensor, filler: float) -> Tensor:
    """What belongs to the next token: (rows, tokens), one place to the left; the last has none."""
    from torch.nn.functional import pad

    return pad(values[:, 1:], (0, 1), value=filler)


def token_loss(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    num_targets: Tensor | int | None = None,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Sum of weight times cross entropy, divided by the number of targets: weights are not in the denominator.

    Args:
        logits: (tokens, vocabulary).
        targets: (tokens), the ids that they predict.
        weights: (tokens), of predicting each; None for 1 everywhere.
        num_targets: predicted tokens of all batches of an optimizer step; None for those given.
        label_smoothing: share of probability that the loss gives to other tokens.

    Returns:
        A scalar, in float32.
    """
    from torch.nn.functional import cross_entropy

    targets = targets.to(logits.device)
    losses = cross_entropy(logits.float(), targets, reduction="none", label_smoothing=label_smoothing)
    if weights is not None:
        losses = losses * weights.to(logits.device)
    count = max(targets.numel(), 1) if num_targets is None else num_targets
    total: Tensor = losses.sum()
    return total / (count.to(total.device) if hasattr(count, "to") else count)

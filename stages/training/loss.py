"""The loss of tokens that do not weigh the same: `weighted_loss(logits, labels, loss_scale, num_labels)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.training.rows import IGNORED

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["weighted_loss"]


def weighted_loss(
    logits: Tensor,
    labels: Tensor,
    loss_scale: Tensor | None,
    num_labels: Tensor | int | None = None,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Sum of weight times cross entropy, divided by the number of labels: weights are not in the denominator.

    Args:
        logits: (rows, tokens, vocabulary); those at a position predict the next token.
        labels: (rows, tokens), IGNORED where nothing is trained.
        loss_scale: (rows, tokens), the weight of predicting each token; None for 1 everywhere.
        num_labels: predicted tokens of all batches of an optimizer step; None for those of this batch.
        label_smoothing: share of probability that the loss gives to other tokens.

    Returns:
        A scalar, in float32.
    """
    from torch.nn.functional import cross_entropy

    labels = labels[:, 1:].to(logits.device)
    kept = labels != IGNORED
    losses = cross_entropy(
        logits[:, :-1][kept].float(), labels[kept], reduction="none", label_smoothing=label_smoothing
    )
    if loss_scale is not None:
        losses = losses * loss_scale[:, 1:].to(logits.device)[kept]
    count = kept.sum().clamp(min=1) if num_labels is None else num_labels
    total: Tensor = losses.sum()
    return total / (count.to(total.device) if hasattr(count, "to") else count)

"""Held-out loss of a language model: `held_out_loss(model, rows, batch_size=1, context=context)`."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.errors import Interrupted, StageFailed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from stages.context import Context
    from stages.training.multimodal import MediaRows
    from stages.training.rows import TokenRows

__all__ = ["HeldOut", "held_out_loss"]

# Logits of so many tokens are widened to float32 at a time.
TOKENS_A_CHUNK = 1024
# Sums of float32 in another order differ past this; reports that round here are the same from run to run.
DECIMALS = 6


@dataclass(frozen=True)
class HeldOut:
    """Mean cross entropy over the tokens that have a label; each such token counts the same.

    Attributes:
        loss: in nats a token.
        num_tokens: tokens that were predicted. A row's first token is predicted from nothing and is not one of them.
        num_samples: rows.
    """

    loss: float
    num_tokens: int
    num_samples: int

    @property
    def perplexity(self) -> float:
        """exp(loss), or infinity."""
        return round(math.exp(self.loss), DECIMALS) if self.loss < math.log(1e300) else math.inf


def held_out_loss(model: PreTrainedModel, rows: TokenRows | MediaRows, *, batch_size: int, context: Context) -> HeldOut:
    """Runs every row through the model, the longest first, rows of like length together.

    Logits are computed only at positions that some row of the batch has a label after.

    Raises:
        Interrupted: the run was told to stop.
        StageFailed: the loss is no number, as with broken weights or an overflow in float16.
    """
    import torch

    lengths = rows.lengths
    order = sorted(range(len(rows)), key=lambda index: (-lengths[index], index))
    total, num_tokens, done = 0.0, 0, 0
    keeps_some = "logits_to_keep" in inspect.signature(model.forward).parameters
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            if context.stop_requested():
                raise Interrupted(f"stopped after {start} of {len(order)} rows")
            chosen = order[start : start + batch_size]
            loss, count = _batch_loss(model, [rows[index] for index in chosen], keeps_some)
            total, num_tokens, done = total + loss, num_tokens + count, done + sum(lengths[i] for i in chosen)
            text = f"{start + len(chosen)} of {len(order)} held-out rows, loss {total / max(num_tokens, 1):.4f}"
            context.reporter.progress(done, rows.num_tokens, text)
    if not math.isfinite(total):
        raise StageFailed(f"the held-out loss is {total}: the weights are broken, or overflow in {model.dtype}")
    return HeldOut(round(total / num_tokens, DECIMALS), num_tokens, len(rows))


def _batch_loss(model: PreTrainedModel, batch: list[dict[str, Any]], keeps_some: bool) -> tuple[float, int]:
    """The sum of cross entropies, and how many there are."""
    from stages.training.batches import collate
    from stages.training.rows import IGNORED

    tensors = {name: tensor.to(model.device) for name, tensor in collate(batch).items()}
    labels = tensors.pop("labels")[:, 1:]
    tensors.pop("loss_scale", None)
    labelled = labels != IGNORED
    kept = labelled.any(dim=0).nonzero().squeeze(1)  # positions; the label of position p is token p + 1
    options = {"logits_to_keep": kept} if keeps_some else {}
    logits = model(**tensors, use_cache=False, **options).logits
    if not keeps_some:
        logits = logits[:, kept]
    mask = labelled[:, kept]
    return _summed(logits[mask], labels[:, kept][mask]), int(mask.sum())


def _summed(logits: Tensor, labels: Tensor) -> float:
    """Cross entropy of (n, vocabulary) logits, in float32 by chunks and added up in float64."""
    from torch.nn.functional import cross_entropy

    total = 0.0
    for start in range(0, len(labels), TOKENS_A_CHUNK):
        chunk = slice(start, start + TOKENS_A_CHUNK)
        total += cross_entropy(logits[chunk].float(), labels[chunk], reduction="none").double().sum().item()
    return total

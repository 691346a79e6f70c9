"""How many tokens, or whole answers, are predicted right: `accuracy.add(logits, targets, samples); accuracy.take()`.

It counts what the loss is computed from: no second forward pass, and of logits nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Accuracy", "sample_numbers"]

NAMES = {"token": "token_acc", "sentence": "seq_acc", "class": "acc"}
"""As SWIFT calls them, by what is counted."""


class Accuracy:
    """Counts over any number of batches; a device is waited for only when the share is asked for.

    Attributes:
        name: one of NAMES.
    """

    def __init__(self, strategy: str) -> None:
        """Nothing is counted yet."""
        self.name = NAMES[strategy]
        self._right: Any = 0
        self._all: Any = 0

    @property
    def of_samples(self) -> bool:
        """Whether `add` needs to know which sample a token belongs to."""
        return self.name == "seq_acc"

    def add(self, predicted: Tensor, targets: Tensor, samples: Tensor | None = None) -> None:
        """Counts one batch, in which every sample is whole.

        Args:
            predicted: (tokens), the likeliest ids; or (rows), classes.
            targets: the same, those that should have been predicted.
            samples: (tokens), a number for each sample, from 0; see `sample_numbers`.
        """
        right = predicted == targets
        if self.of_samples:
            assert samples is not None
            seen = right.new_zeros(_bound(samples), dtype=right.dtype)
            wrong = seen.clone()
            seen[samples] = True
            wrong[samples[~right]] = True
            right, targets = ~wrong & seen, seen[seen]
        self._right = self._right + right.sum()
        self._all = self._all + targets.numel()

    def take(self, add_up: Callable[[Sequence[float]], list[float]] = list) -> float | None:
        """The share of what was right since the last call; None if nothing was counted.

        Args:
            add_up: gives the sums of the counts of all processes.
        """
        right, count = add_up([float(self._right), float(self._all)])
        self._right = self._all = 0
        return right / count if count else None


def _bound(samples: Tensor) -> int:
    return int(samples.max()) + 1 if samples.numel() else 0


def sample_numbers(kept: Tensor, position_ids: Tensor | None = None) -> Tensor:
    """Which sample each kept token belongs to: its row, or, in packs, the sequence that begins where positions do.

    Args:
        kept: (rows, tokens), where a token is predicted.
        position_ids: (rows, tokens) of packs, which start again at 0 with each sample; None for rows as they are.
    """
    if position_ids is None or position_ids.shape != kept.shape:
        return kept.nonzero()[:, 0]
    return (position_ids == 0).flatten().cumsum(0).view_as(kept)[kept]

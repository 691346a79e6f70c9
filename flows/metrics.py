"""Which of two figures is the better one: `is_better(1.2, 1.3, "eval_loss")`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["is_better", "lower_is_better", "metrics_of"]

LOWER = ("loss", "perplexity")


def lower_is_better(metric: str) -> bool:
    """Losses and perplexities are better when they are lower, scores of benchmarks when they are higher."""
    return metric.endswith(LOWER)


def is_better(new: float, old: float, metric: str) -> bool:
    """Whether `new` beats `old`; what is no number beats nothing, and everything else beats it."""
    if math.isnan(new) or math.isnan(old):
        return math.isnan(old) and not math.isnan(new)
    return new < old if lower_is_better(metric) else new > old


def metrics_of(stages: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What training and evaluation measured in a run (the `stages` of its record); the last word counts."""
    found: dict[str, Any] = {}
    for stage in stages:
        if stage["stage"] in ("train", "evaluate"):
            found |= stage["metrics"]
    return found

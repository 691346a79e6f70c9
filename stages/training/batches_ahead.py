"""The largest batch of a run, before it begins: `most_expensive(run, per_token, per_target)`."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from stages.training.batches import PADDING_WORTH_A_CALL
from stages.training.rows import IGNORED, TokenRows
from stages.training.simulate import Batch

if TYPE_CHECKING:
    from stages.training.estimate import Run
    from stages.training.rows import Part

__all__ = ["most_expensive"]

LOOKED_AT = 20_000
"""Batches that are made up, at most."""
UNKNOWN_LENGTH = 1024
"""Tokens of a row whose length nobody knows and no `max_length` limits."""


def most_expensive(run: Run, per_token: int, per_target: int) -> tuple[Batch, bool]:
    """The batch that needs most among as many random ones as the run has, as far as a device takes it at once.

    Args:
        run: its rows and arguments.
        per_token: bytes that a token costs.
        per_target: bytes that a token costs which is predicted.

    Returns:
        The batch, and whether gradients of another one may be there already.
    """
    size = run.arguments.per_device_train_batch_size
    several = run.arguments.gradient_accumulation_steps > 1
    sizes = _sizes(run.feed.train)
    if sizes is None:
        length = run.max_length or UNKNOWN_LENGTH
        return Batch(size, length, size * (length - 1)), several or size > 1
    batches = max(1, run.steps * run.arguments.gradient_accumulation_steps)
    best, most, cut = Batch(1, 1, 1), -1, False
    for chosen in _random_batches(sizes, size, min(batches, LOOKED_AT)):
        parts = list(_parts(chosen)) if run.precision.on_cpu and not run.feed.packed else [chosen]
        cut = cut or len(parts) > 1
        for part in parts:
            longest = max(length for length, _ in part)
            batch = Batch(len(part), longest, max(1, sum(targets for _, targets in part)))
            cost = batch.rows * batch.length * per_token + batch.targets * per_target
            if cost > most:
                best, most = batch, cost
    return best, several or cut


def _sizes(rows: Any) -> Sequence[tuple[int, int]] | None:
    """Tokens of each row, and how many of them are predicted; None where rows have no length yet."""
    if not hasattr(rows, "lengths"):
        return None
    lengths: list[int] = rows.lengths
    if isinstance(rows, TokenRows):
        return list(zip(lengths, _targets(rows.parts), strict=True))
    share = min(1.0, rows.num_labels / max(rows.num_tokens, 1))
    return [(length, round(length * share)) for length in lengths]


def _targets(parts: Sequence[Part]) -> Iterator[int]:
    """Tokens of each row that have a label."""
    import numpy as np

    for part in parts:
        before = np.concatenate([[0], np.cumsum(part.labels != IGNORED)])
        yield from (before[part.starts[1:]] - before[part.starts[:-1]]).tolist()


def _random_batches(sizes: Sequence[tuple[int, int]], size: int, count: int) -> Iterator[Sequence[tuple[int, int]]]:
    generator = random.Random(0)
    order: list[int] = []
    for _ in range(count):
        if len(order) < min(size, len(sizes)):
            order = generator.sample(range(len(sizes)), len(sizes))
        chosen, order = order[:size], order[size:]
        yield [sizes[index] for index in chosen]


def _parts(batch: Sequence[tuple[int, int]]) -> Iterator[Sequence[tuple[int, int]]]:
    """As `split_by_length` cuts it."""
    part: list[tuple[int, int]] = []
    for row in sorted(batch, reverse=True):
        if part and part[0][0] - row[0] > PADDING_WORTH_A_CALL:
            yield part
            part = []
        part.append(row)
    yield part

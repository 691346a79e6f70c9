"""Draws how long rows are: `draw_lengths([12, 80, 33], 2048, Path("token-lengths.png"))`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

__all__ = ["draw_lengths"]

MOST_BARS = 60


def draw_lengths(lengths: Sequence[int], max_length: int | None, path: Path) -> None:
    """Writes a PNG: rows by their number of tokens, with a line at `max_length` where rows come near it."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    first, last = min(lengths), max(lengths)
    step = max(1, math.ceil((last - first + 1) / MOST_BARS))
    axes.hist(lengths, bins=[edge - 0.5 for edge in range(first, last + step + 1, step)], color="#31688e")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if max_length is not None and last > max_length / 2:
        axes.axvline(max_length, color="#b5367a", linewidth=1)
        axes.annotate(" max_length", (max_length, 1), xycoords=("data", "axes fraction"), va="top", color="#b5367a")
    axes.set(xlabel="tokens in a row", ylabel="rows", title=f"{len(lengths):,} rows, {sum(lengths):,} tokens")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)

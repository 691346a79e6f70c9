"""Draws how long rows are: `draw_lengths([12, 80, 33], 2048, Path("token-lengths.png"))`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["draw_lengths"]


def draw_lengths(lengths: Sequence[int], max_length: int | None, path: Path) -> None:
    """Writes a PNG: rows by their number of tokens, with a line at `max_length` where rows come near it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.hist(lengths, bins=min(60, max(lengths)), color="#31688e")
    if max_length is not None and max(lengths) > max_length / 2:
        axes.axvline(max_length, color="#b5367a", linewidth=1)
        axes.annotate(" max_length", (max_length, 1), xycoords=("data", "axes fraction"), va="top", color="#b5367a")
    axes.set(xlabel="tokens in a row", ylabel="rows", title=f"{len(lengths)} rows, {sum(lengths)} tokens")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)

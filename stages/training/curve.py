"""The loss curve as a picture: `draw_loss_curve(history, Path("images/train_loss.png"))`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["draw_loss_curve"]

SMOOTHING = 0.9
"""Weight of the past in the smoothed curve, as in TensorBoard."""
COLORS = 64
"""A third of the bytes that true colour takes: the picture is kept with each run, here and in the Prefect UI."""


def draw_loss_curve(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws training loss, its smoothed course and validation loss over steps; replaces `path` at one stroke.

    Args:
        history: the trainer's log: entries with `step` and `loss` or `eval_loss`.
        path: a PNG of 900 x 540 pixels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    steps, losses = _series(history, "loss")
    # Figure without pyplot: no global state, no display, and safe in a thread.
    figure = Figure(figsize=(7.5, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="#9ecae1", linewidth=1, label="training loss")
    axes.plot(steps, _smoothed(losses), color="#08519c", linewidth=2, label=f"smoothed ({SMOOTHING})")
    validated, held_out = _series(history, "eval_loss")
    if validated:
        axes.plot(validated, held_out, "o-", color="#e6550d", markersize=4, label="validation loss")
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    picture.quantize(COLORS).save(partial, "PNG")
    partial.replace(path)


def _series(history: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    points = [(entry["step"], entry[name]) for entry in history if name in entry]
    return [step for step, _ in points], [value for _, value in points]


def _smoothed(values: Sequence[float]) -> list[float]:
    """Exponential moving average, freed of its start at zero."""
    average, weight, smoothed = 0.0, 0.0, []
    for value in values:
        average = SMOOTHING * average + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        smoothed.append(average / weight)
    return smoothed

"""The runs of a sweep side by side: `print_comparison(record)`, `draw_comparison(record, path)`."""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.cost import cost_line, money
from flows.metrics import lower_is_better
from flows.summary import print_table
from flows.sweep.trials import Row, SweepRecord
from stages.artifacts.key import compact

__all__ = ["comparison", "draw_comparison", "print_comparison", "show_comparison"]

ALSO = ("eval_loss", "train_loss", "last_loss")
WIDE = 10
"""Axes whose largest value is so many times the smallest are drawn on a logarithmic scale."""


def comparison(record: SweepRecord) -> tuple[list[str], list[list[str]]]:
    """Headers and rows, best first, those without a figure last."""
    others = [name for name in ALSO if name != record.metric and any(name in row.metrics for row in record.rows)]
    priced = any(row.cost and row.cost["cost"] is not None for row in record.rows)
    headers = [*record.axes, record.metric, "best", *others, "seconds", *(["cost"] if priced else []), "stages", "run"]
    best = record.best
    rows = []
    for row in _ordered(record):
        cells = [compact(row.parameters[name]) for name in record.axes]
        cells += [
            _figure(row.metrics.get(record.metric)),
            "←" if row is best else "",
            *(_figure(row.metrics.get(name)) for name in others),
        ]
        cells += [f"{row.seconds:.1f}", *([_cost(row)] if priced else [])]
        rows.append([*cells, row.work() if row.ok else f"failed: {row.error}", (row.run or "")[:8]])
    return headers, rows


def _ordered(record: SweepRecord) -> list[Row]:
    sign = 1 if lower_is_better(record.metric) else -1

    def place(row: Row) -> tuple[bool, float]:
        value = row.value(record.metric)
        return (value is None, 0.0 if value is None else sign * value)

    return sorted(record.rows, key=place)


def _figure(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)


def _cost(row: Row) -> str:
    known = row.cost and row.cost["cost"] is not None
    return money(row.cost["cost"], row.cost["currency"]) if known and row.cost else ""


def print_comparison(record: SweepRecord) -> None:
    """The table and what to do next."""
    headers, rows = comparison(record)
    texts = {"best", "stages", "run", *record.axes}
    print_table(headers, rows, sys.stdout, numbers=[header for header in headers if header not in texts])
    print()
    best = record.best
    if best is not None:
        direction = "lowest" if lower_is_better(record.metric) else "highest"
        figure = _figure(best.value(record.metric))
        print(f"best:    {best.title}, {record.metric} {figure} (the {direction} of {len(rows)})")
    else:
        print(f"best:    none: no run has measured {record.metric}")
    if record.picture:
        print(f"picture: {_relative(record.picture)}")
    if record.export is not None and record.export.get("output_dir"):
        print(f"export:  {_relative(record.export['output_dir'])}")
    if record.cost is not None:
        print(f"cost:    {cost_line(record.cost)}")
    print(f"sweep:   {record.id} ({record.seconds:.1f} s)")


def _relative(path: str) -> str:
    place = Path(path)
    return str(place.relative_to(Path.cwd())) if place.is_relative_to(Path.cwd()) else path


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _x_axis(record: SweepRecord) -> str:
    """The axis with the most values, a numeric one if there is any."""
    return max(record.axes, key=lambda name: (all(map(_is_number, record.axes[name])), len(record.axes[name])))


def draw_comparison(record: SweepRecord, path: Path) -> bool:
    """Draws the metric over one axis, with a line for each combination of the others.

    Args:
        record: whose rows are drawn; those without a figure are left out.
        path: a PNG of 900 x 540 pixels.

    Returns:
        Whether there was anything to draw.
    """
    best = record.best
    if best is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    name = _x_axis(record)
    places, is_numeric = _places(record.axes[name])
    figure = Figure(figsize=(7.5, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for label, rows in _lines(record.rows, name).items():
        points = sorted(point for row in rows for point in _points(row, places[compact(row.parameters[name])], record))
        axes.plot([x for x, _ in points], [y for _, y in points], "o-" if is_numeric else "o", label=label or None)
    [(x, y)] = _points(best, places[compact(best.parameters[name])], record)
    axes.plot([x], [y], "*", color="black", markersize=16, label=f"best: {y:.4f}", zorder=3)
    if is_numeric and min(places.values()) > 0 and max(places.values()) / min(places.values()) >= WIDE:
        axes.set_xscale("log")
    axes.set_xticks(list(places.values()), list(places))
    axes.minorticks_off()
    axes.set(xlabel=name, ylabel=record.metric)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    FigureCanvasAgg(figure).print_png(str(partial))
    partial.replace(path)
    return True


def _points(row: Row, x: float, record: SweepRecord) -> list[tuple[float, float]]:
    """A row as a point, if it has a figure."""
    value = row.value(record.metric)
    return [] if value is None else [(x, value)]


def _places(values: Sequence[Any]) -> tuple[dict[str, float], bool]:
    """Where each value of an axis stands: at itself if all are numbers, else one after the other."""
    if all(map(_is_number, values)):
        return {compact(value): float(value) for value in values}, True
    return {compact(value): float(place) for place, value in enumerate(values)}, False


def _lines(rows: Sequence[Row], x_axis: str) -> dict[str, list[Row]]:
    """The rows by what the other axes say."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        label = ", ".join(f"{name} {compact(value)}" for name, value in row.parameters.items() if name != x_axis)
        lines.setdefault(label, []).append(row)
    return lines


def show_comparison(record: SweepRecord) -> None:
    """Table and picture in the Prefect UI; called inside the sweep's flow run."""
    from prefect.artifacts import create_markdown_artifact, create_table_artifact

    headers, rows = comparison(record)
    table = [dict(zip(headers, row, strict=True)) for row in rows]
    best = record.best
    text = f"**Sweep** over {', '.join(record.axes)}"
    create_table_artifact(table, key="sweep-comparison", description=text + (f"; best: {best.title}" if best else ""))
    if record.picture:
        data = base64.b64encode(Path(record.picture).read_bytes()).decode()
        # Prefect's own image artifact prints the whole data: URL below the picture.
        create_markdown_artifact(f"![{record.metric}](data:image/png;base64,{data})", key="sweep-picture")

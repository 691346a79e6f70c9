"""Figures as people write them, and tables of them in Markdown: `table(["", ""], facts({"num_rows": 6400}))`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stages.artifacts.describe import size_text

__all__ = ["facts", "figure", "headline", "joined", "key_of", "label", "seconds_text", "table"]

SPLITS = ("train", "validation")
LOSSES = ("loss", "perplexity")


def key_of(*parts: str) -> str:
    """Prefect's keys hold lower-case letters, digits and dashes only."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


def seconds_text(seconds: float) -> str:
    """`0.04 s`, `12.3 s`, `4 min 5 s`, `2 h 5 min`."""
    if seconds < 0.995:
        return f"{seconds:.2f} s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def figure(name: str, value: Any) -> str:
    """The value of a metric, with the unit that its name ends in."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return _escaped(str(value))
    if name.endswith("_bytes"):
        return size_text(int(value))
    if name.endswith("_seconds"):
        return seconds_text(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if name.endswith(LOSSES) and abs(value) < 100 else f"{value:,.4g}"


def _escaped(text: str) -> str:
    """What somebody's data say is no Markdown and no HTML; what stands in backticks is none already."""
    pieces = re.split(r"(`[^`\n]*`)", text)
    return "".join(
        piece if index % 2 else re.sub(r"([\\<>*_\[\]])", r"\\\1", piece) for index, piece in enumerate(pieces)
    )


def label(name: str) -> str:
    """`num_merged_tensors` → `merged tensors`."""
    return re.sub(r"^num_|_(bytes|seconds)$", "", name).replace("_", " ")


def headline(metrics: Mapping[str, Any]) -> str:
    """The one figure that people look for first: `loss 6.010 → 4.914`, `64 rows, 2,248 tokens`."""
    match metrics:
        case {"first_loss": float(first), "last_loss": float(last)}:
            return f"loss {first:.3f} → {last:.3f}"
        case {"eval_loss": float(loss)}:
            return f"held-out loss {loss:.4f}"
        case {"size_before_bytes": int(before), "size_after_bytes": int(after)}:
            return f"{size_text(before)} → {size_text(after)}"
        case {"train_rows": int(rows), "train_tokens": int(tokens)}:
            return f"{rows:,} rows, {tokens:,} tokens"
        case {"train_rows": int(rows)}:
            return f"{rows:,} rows"
        case {"num_parameters": int(count)}:
            return f"{count / 1e6:,.3g}M parameters"
        case {"weights_bytes": int(size)}:
            return size_text(size)
    return next((f"{label(name)} {figure(name, value)}" for name, value in metrics.items() if _is_score(value)), "")


def _is_score(value: Any) -> bool:
    return isinstance(value, float)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[int] = ()) -> str:
    """A Markdown table without the columns in which nothing stands; empty without rows.

    Args:
        headers: of the columns.
        rows: cells, which may hold Markdown.
        right: the columns of figures.
    """
    aligned = set(right)
    cells = [[_cell(cell, column in aligned) for column, cell in enumerate(row)] for row in rows]
    filled = [column for column in range(len(headers)) if any(row[column] for row in cells)]
    rule = ["---:" if column in aligned else "---" for column in range(len(headers))]
    lines = [[line[column] for column in filled] for line in (list(headers), rule, *cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if filled else ""


def _cell(text: str, is_figure: bool) -> str:
    """One line, without what would end the cell; a figure stays with its unit."""
    line = re.sub(r"\s*\n\s*", "<br>", text.strip()).replace("|", r"\|")
    return line.replace(" ", "\u00a0") if is_figure else line


def facts(metrics: Mapping[str, Any]) -> str:
    """All metrics of a stage: what there is of both splits side by side, the rest below each other."""
    rest = dict(metrics)
    names = [name.removeprefix("train_") for name in metrics if name.startswith("train_")]
    both = [name for name in names if all(f"{split}_{name}" in metrics for split in SPLITS)]
    sides = [[label(name), *(figure(name, rest.pop(f"{split}_{name}")) for split in SPLITS)] for name in both]
    lines = [[label(name), figure(name, value)] for name, value in joined(rest).items() if value is not None]
    tables = (table(["", *SPLITS], sides, right=(1, 2)), table(["metric", "value"], lines))
    return "\n\n".join(text for text in tables if text)


def joined(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics under their labels' names; figures that only say something together, in one line."""
    found: dict[str, Any] = {}
    for name, value in metrics.items():
        match name:
            case "first_loss" if "last_loss" in metrics:
                found["training loss"] = f"{value:.4f} → {metrics['last_loss']:.4f}"
            case "first_eval_loss" if "eval_loss" in metrics:
                found["held-out loss"] = f"{value:.4f} → {metrics['eval_loss']:.4f}"
            case "eval_loss" if "first_eval_loss" not in metrics:
                found["held-out loss"] = figure(name, value)
            case "num_trainable_parameters" if metrics.get("num_parameters"):
                share = value / metrics["num_parameters"]
                found["trained parameters"] = f"{value:,} of {metrics['num_parameters']:,} ({share:.2%})"
            case "size_before_bytes" if "size_after_bytes" in metrics:
                after = metrics["size_after_bytes"]
                share = f" ({after / value:.0%})" if value else ""
                found["size"] = f"{size_text(value)} → {size_text(after)}{share}"
            case "last_loss" | "size_after_bytes" | "size_ratio" | "eval_loss":
                pass
            case "num_parameters" if "num_trainable_parameters" in metrics:
                pass
            case "train_loss":
                found["mean training loss"] = figure(name, value)
            case "global_step":
                found["steps"] = figure(name, value)
            case "num_train_epochs":
                found["epochs"] = figure(name, value)
            case _:
                found[name] = value
    return found

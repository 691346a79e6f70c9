"""The last thing a run prints: a table of its stages, or one JSON object."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.cost import cost_line, money
from flows.record import StageRecord
from stages.artifacts.describe import size_text

__all__ = ["print_plan", "print_run", "print_table"]

MODELS = ("train", "merge", "quantize")
NUMBERS = ("seconds", "saved", "GPU-h", "cost")


def _artifact(record: dict[str, Any] | None) -> str:
    if not record:
        return ""
    return f"{record['kind']} {record['digest'].removeprefix('sha256:')[:12]} ({size_text(record['size'])})"


def _loss(metrics: dict[str, Any]) -> str:
    first, last = metrics.get("first_loss"), metrics.get("last_loss")
    if isinstance(first, float) and isinstance(last, float):
        return f"train {first:.3f} → {last:.3f}"
    held_out = metrics.get("eval_loss")
    return f"held-out {held_out:.4f}" if isinstance(held_out, float) else ""


def print_table(headers: list[str], rows: list[list[str]], file: Any, numbers: Sequence[str] = NUMBERS) -> None:
    """Prints a table, the columns named in `numbers` to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold", justify="right" if header in numbers else "left")
    for row in rows:
        table.add_row(*row)
    width = None if file.isatty() else 140
    Console(file=file, width=width, highlight=False, soft_wrap=False).print(table)


def print_run(record: dict[str, Any], *, as_json: bool) -> None:
    """Prints a run's record (`RunRecord.to_json`) for people, or for machines as stdout's last line."""
    if as_json:
        print(json.dumps(record), flush=True)
        return
    headers = ["stage", "status", "seconds", *_cost_headers(record), "artifact", "loss"]
    print_table(headers, [_row(stage, record, headers) for stage in record["stages"]], sys.stdout)
    for line in _closing_lines(record):
        print(line)


def _cost_headers(record: dict[str, Any]) -> list[str]:
    """The columns of cost that say something in this run."""
    if not record.get("cost"):
        return []
    columns = {"saved": "saved_seconds", "GPU-h": "gpu_hours", "cost": "cost"}
    return [header for header, name in columns.items() if any(stage.get(name) for stage in record["stages"])]


def _row(stage: dict[str, Any], record: dict[str, Any], headers: list[str]) -> list[str]:
    done = stage["status"] not in ("skipped", "failed")
    saved, hours, cost = (stage.get(name) for name in ("saved_seconds", "gpu_hours", "cost"))
    cells = {
        "stage": StageRecord(stage["stage"], stage["label"]).title,
        "status": stage["status"],
        "seconds": f"{stage['seconds']:.1f}" if stage["status"] != "skipped" else "",
        "saved": f"{saved:.1f}" if saved else "",
        "GPU-h": f"{hours:.3g}" if hours else "",
        "cost": "" if cost is None else money(cost, record["cost"]["currency"]) if cost else "",
        "artifact": _artifact(stage["artifact"]),
        "loss": _loss(stage["metrics"]) if done else stage.get("reason", ""),
    }
    return [cells[header] for header in headers]


def _closing_lines(record: dict[str, Any]) -> list[str]:
    """How the held-out loss moved, and where the results are."""
    losses = {
        stage["label"]: stage["metrics"]["eval_loss"]
        for stage in record["stages"]
        if stage["stage"] == "evaluate" and "eval_loss" in stage["metrics"]
    }
    lines = [""]
    if "base" in losses and len(losses) > 1:
        moved = " → ".join(f"{losses[label]:.4f} ({label})" for label in losses)
        lines.append(f"held-out loss: {moved}")
    models = [stage["path"] for stage in record["stages"] if stage["stage"] in MODELS and stage.get("path")]
    models = [_relative(path) for path in models]
    lines += [f"model:  {path}" for path in models[-1:]]
    whole = [path for path in models if _writes(Path(path))]
    lines += [f"chat:   {_relative(sys.executable)} -m stages.serving.chat {path}" for path in whole[-1:]]
    if record["output_dir"]:
        lines.append(f"output: {_relative(record['output_dir'])}")
    if record.get("cost"):
        lines.append(f"cost:   {cost_line(record['cost'])}")
    if not os.environ.get("PREFECT_API_URL"):
        lines.append("runs:   prefect server start, then http://127.0.0.1:4200")
    lines.append(f"run:    {record['run']} ({record['seconds']:.1f} s)")
    return lines


def _writes(folder: Path) -> bool:
    """Whether a folder holds a whole model, and one that can be talked to: no classifier."""
    config = folder / "config.json"
    return config.is_file() and "ForSequenceClassification" not in config.read_text(encoding="utf-8")


def _relative(path: str) -> str:
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path


def print_plan(lines: list[dict[str, Any]], flow: str, *, as_json: bool) -> None:
    """Prints what a run would do."""
    if as_json:
        print(json.dumps({"flow": flow, "stages": lines}), flush=True)
        return
    width = max((len(StageRecord(line["stage"], line["label"]).title) for line in lines), default=0)
    for line in lines:
        title = StageRecord(line["stage"], line["label"]).title
        print(f"{title:<{width}}  {line['status']:<8} {line['reason']}")

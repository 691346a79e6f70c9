"""The report of an evaluation, as JSON for programs and Markdown for people: `write_report(out, facts, …)`.

The same measurement gives the same bytes: no times, no paths.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.evaluation.harness import Score, Task
from stages.evaluation.loss import HeldOut

__all__ = ["write_report"]


def write_report(
    out: Path, model: dict[str, Any], held_out: HeldOut | None, tasks: Sequence[Task], scores: Sequence[Score]
) -> str:
    """Writes `report.json` and `report.md`; answers the latter's text."""
    record: dict[str, Any] = {"model": model}
    if held_out is not None:
        record["held_out"] = {
            "eval_loss": held_out.loss,
            "perplexity": held_out.perplexity,
            "num_tokens": held_out.num_tokens,
            "num_samples": held_out.num_samples,
        }
    if tasks:
        record["benchmarks"] = [_benchmark(task, [s for s in scores if s.task == task.title]) for task in tasks]
    (out / "report.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    text = _markdown(model, held_out, tasks, scores)
    (out / "report.md").write_text(text, encoding="utf-8")
    return text


def _benchmark(task: Task, scores: Sequence[Score]) -> dict[str, Any]:
    return {
        "name": task.benchmark.name,
        "title": task.title,
        "subsets": {subset.name: subset.num_rows for subset in task.subsets},
        "prompt_language": _prompt_language(task),
        "main_metric": next((score.metric for score in scores if score.is_main), None),
        "metrics": {score.metric: score.value for score in scores},
    }


def _markdown(model: dict[str, Any], held_out: HeldOut | None, tasks: Sequence[Task], scores: Sequence[Score]) -> str:
    lines = ["# Evaluation", "", "| | |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {value} |" for name, value in model.items()]
    if held_out is not None:
        lines += [
            "",
            "## Held-out rows",
            "",
            "| loss | perplexity | tokens | rows |",
            "|---:|---:|---:|---:|",
            f"| {held_out.loss:.4f} | {held_out.perplexity:.3f} | {held_out.num_tokens:,} | {held_out.num_samples:,} |",
        ]
    for task in tasks:
        lines += ["", f"## {task.title}", "", "| metric | score | questions |", "|---|---:|---:|"]
        lines += [
            f"| {'**' * score.is_main}{score.metric}{'**' * score.is_main} | {score.value:.4f} | {score.num_samples} |"
            for score in scores
            if score.task == task.title
        ]
        if language := _prompt_language(task):
            lines += ["", f"Asked with evalscope's {language} prompt."]
    return "\n".join(lines) + "\n"


def _prompt_language(task: Task) -> str | None:
    """Of the prompt around a question: general_qa asks it as it is."""
    if task.benchmark.name != "general_mcq":
        return None
    return "Chinese" if any(subset.is_chinese for subset in task.subsets) else "English"

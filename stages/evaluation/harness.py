"""evalscope against a server that is started for it: `run_benchmarks(engine, benchmarks, …)`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.context import Context
from stages.errors import StageFailed
from stages.evaluation.benchmarks import Benchmark, Subset
from stages.processes import run_child
from stages.serving.engine import Engine, Sampling
from stages.serving.server import Server, serve

__all__ = ["Score", "Task", "run_benchmarks"]

MODEL_NAME = "model"
RUNNER = Path(__file__).with_name("evalscope_runner.py")
SEED = 42
# The engine answers one question after the other, each as slowly as it must; asking again would only make it slower.
PATIENCE = {"timeout": 24 * 3600.0, "retries": 0}
# Nothing is looked up on a hub: the rows are here, and the tokenizer stays with the server.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@dataclass(frozen=True)
class Task:
    """A benchmark, ready to be run.

    Attributes:
        benchmark: which.
        title: `general_qa`, or `general_qa_1` where there are several.
        data: a folder with one `SUBSET.jsonl` for each subset.
        subsets: what is in it.
    """

    benchmark: Benchmark
    title: str
    data: Path
    subsets: Sequence[Subset]

    @property
    def num_rows(self) -> int:
        """Of all subsets."""
        return sum(subset.num_rows for subset in self.subsets)


@dataclass(frozen=True)
class Score:
    """One metric of one benchmark.

    Attributes:
        task: the title.
        metric: `rouge_l_recall`.
        value: 0 to 1.
        num_samples: rows it is the mean of.
        is_main: whether the benchmark is known by it.
    """

    task: str
    metric: str
    value: float
    num_samples: int
    is_main: bool


def run_benchmarks(
    engine: Engine, tasks: Sequence[Task], python: Path, sampling: Sampling, context: Context
) -> list[Score]:
    """Starts a server for the engine, lets evalscope ask it, and reads what evalscope found.

    evalscope's own folder, with every answer, is among the attachments.

    Args:
        engine: answers; it is closed afterwards.
        tasks: what to run.
        python: the interpreter of the environment `evaluate`.
        sampling: settings of the server; evalscope repeats the temperature and the limit of tokens.
        context: progress in answered requests.

    Raises:
        StageFailed: a request or a metric failed: no score is made up.
        Interrupted: the run was told to stop.
    """
    result = context.scratch.absolute() / "result.json"
    log = context.attachments / "evalscope.log"
    total = sum(task.num_rows for task in tasks)
    with serve(engine, MODEL_NAME, sampling=sampling) as server:
        job = context.scratch.absolute() / "evalscope.json"
        job.write_text(
            json.dumps(_job(tasks, server.url, sampling, context.attachments.absolute() / "evalscope", result))
        )
        look = _watch(server, total, context)
        try:
            run_child(
                python,
                RUNNER,
                [str(job)],
                log=log,
                title="evalscope",
                stop_requested=look,
                environment=OFFLINE,
                folder=context.scratch,
            )
        except StageFailed as error:
            raise StageFailed(f"{error}{_cause(server)}") from error
    scores = []
    for task, found in zip(tasks, json.loads(result.read_text(encoding="utf-8")), strict=True):
        _check(task, found, server)
        scores += _scores(task, found["report"])
    return scores


def _job(tasks: Sequence[Task], url: str, sampling: Sampling, work: Path, result: Path) -> dict[str, Any]:
    generation = {"temperature": sampling.temperature, "max_tokens": sampling.max_new_tokens, "top_p": sampling.top_p}
    return {
        "api_url": url,
        "model": MODEL_NAME,
        "seed": SEED,
        "generation": PATIENCE | {name: value for name, value in generation.items() if value is not None},
        "result": str(result),
        "benchmarks": [
            {
                "name": task.benchmark.name,
                "data": str(task.data.absolute()),
                "subsets": [subset.name for subset in task.subsets],
                "is_chinese": any(subset.is_chinese for subset in task.subsets),
                "work": str(work / task.title),
            }
            for task in tasks
        ],
    }


def _watch(server: Server, total: int, context: Context) -> Callable[[], bool]:
    """Asked several times a second whether to stop; moves the bar meanwhile."""
    shown = -1

    def look() -> bool:
        nonlocal shown
        if server.num_answered != shown:
            shown = server.num_answered
            context.reporter.progress(shown, total, f"{shown} of {total} questions answered")
        return context.stop_requested()

    return look


def _check(task: Task, found: dict[str, Any], server: Server) -> None:
    """What failed is counted as 0 by evalscope; here it is an error."""
    summary = found["report"].get("execution_summary") or {}
    if summary.get("succeeded") != task.num_rows or summary.get("errored"):
        raise StageFailed(
            f"{task.title}: evalscope scored {summary.get('succeeded')} of {task.num_rows} questions{_cause(server)}"
        )
    if found["metric_errors"]:
        raise StageFailed(f"{task.title}: evalscope could not compute {found['metric_errors'][0]}")


def _cause(server: Server) -> str:
    return f". The server said: {server.failures[0][:300]}" if server.failures else ""


def _scores(task: Task, report: dict[str, Any]) -> list[Score]:
    main = report["primary_metric_identity"]
    return [
        Score(task.title, metric_name(metric["identity"]), metric["score"], metric["num"], metric["identity"] == main)
        for metric in report["metrics"]
    ]


def metric_name(identity: dict[str, Any]) -> str:
    """`rouge_l_recall`, `bleu_1`, `accuracy`, out of evalscope's name and dimensions."""
    dimensions = identity["dimensions"]
    parts = [dimensions.get(name) for name in ("ngram", "variant", "statistic")]
    return "_".join(str(part) for part in (identity["name"], *parts) if part is not None)

"""A sweep: one run for each combination of the values of some parameters, side by side in a table and a picture.

trials = make_trials("sft-then-export", {"model": "M", "dataset": ["rows.jsonl"]}, {"lora_rank": [8, 16]}, "eval_loss")
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from flows.cost import add_up
from flows.metrics import is_better, metrics_of
from flows.parameters import given_parameters
from flows.pipeline import Pipeline, get_pipeline
from flows.plan import plan
from flows.record import public
from stages.arguments.base import Arguments
from stages.arguments.command_line import merge
from stages.artifacts.key import compact
from stages.artifacts.store import Store
from stages.errors import ArgumentsError, UserError

__all__ = [
    "EXPORTS",
    "TRIALS",
    "Row",
    "SweepRecord",
    "Trial",
    "axes_of",
    "best_of",
    "check_trials",
    "make_trials",
    "trial_parameters",
    "unlike",
]

TRIALS = {"sft": "sft", "sft-then-export": "sft-then-evaluate"}
"""The flow that each combination runs, by the recipe's."""
EXPORTS = {"sft-then-export"}
"""Flows that go on where their trial ends."""
MEASURED = {
    "sft": ("eval_loss", "train_loss", "last_loss"),
    "sft-then-evaluate": ("eval_loss", "perplexity", "train_loss", "last_loss"),
}
ROWS = ("preprocess", "tokenize")
MAX_NAME_LENGTH = 80


@dataclass(frozen=True)
class Trial:
    """One combination.

    Attributes:
        pipeline: what it runs.
        values: what differs from the other trials, by parameter.
        arguments: all of its parameters, checked.
        title: `learning_rate 1e-4 · lora_rank 8`.
        number: which of them it is, from 1.
    """

    number: int
    pipeline: Pipeline
    values: Mapping[str, Any]
    arguments: Arguments
    title: str

    @property
    def folder(self) -> str:
        """Its folder in the sweep's: `1_learning_rate-1e-4_lora_rank-8`."""
        title = re.sub(r"[^\w.+-]+", "-", self.title.replace(" · ", "_"))
        return f"{self.number}_{title}"[:MAX_NAME_LENGTH]


def make_trials(flow: str, base: Mapping[str, Any], axes: Mapping[str, Sequence[Any]], metric: str) -> list[Trial]:
    """Every combination, the last axis changing fastest.

    Args:
        flow: the recipe's.
        base: parameters that all of them share.
        axes: values by parameter.
        metric: what they are compared by.

    Raises:
        ArgumentsError: there is no axis, a value is invalid, two combinations are the same, an axis changes nothing of
            what is compared, or the metric is not measured.
    """
    if flow not in TRIALS:
        raise ArgumentsError(f"a sweep compares trainings, not {flow}. Choose a recipe of: {', '.join(TRIALS)}")
    if not axes:
        raise ArgumentsError("nothing varies: give several values to an option, such as --learning_rate 1e-4 2e-4")
    pipeline = get_pipeline(TRIALS[flow])
    for name in axes:
        _check_axis(name, pipeline)
    combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    trials = [_trial(number, pipeline, base, values) for number, values in enumerate(combinations, 1)]
    seen: dict[str, Trial] = {}
    for trial in trials:
        same = seen.setdefault(trial.arguments.model_dump_json(), trial)
        if same is not trial:
            raise ArgumentsError(f"two combinations are the same: {same.title} and {trial.title}")
        _check_metric(metric, trial)
    return trials


def axes_of(trials: Sequence[Trial]) -> dict[str, list[Any]]:
    """The distinct values of each axis, as the checked arguments have them."""
    axes: dict[str, list[Any]] = {name: [] for name in trials[0].values}
    for trial in trials:
        for name, value in trial.values.items():
            if value not in axes[name]:  # lists have no hash
                axes[name].append(value)
    return axes


def _trial(number: int, pipeline: Pipeline, base: Mapping[str, Any], values: dict[str, Any]) -> Trial:
    try:
        arguments = pipeline.arguments(**merge(base, values, pipeline.arguments))
    except ArgumentsError as error:
        raise ArgumentsError(f"{_title(values)}: {error}") from None
    typed = arguments.model_dump(mode="json", include=set(values))
    settled = {name: typed[name] for name in values}
    return Trial(number, pipeline, settled, arguments, _title(settled))


def _title(values: Mapping[str, Any]) -> str:
    return " · ".join(f"{name} {compact(value)}" for name, value in values.items())


def _stage_fields(stage: str) -> set[str]:
    """The parameters that change what a stage makes."""
    from stages.registry import get_stage

    fields = get_stage(stage).arguments.model_fields
    extras = {name: info.json_schema_extra for name, info in fields.items()}
    return {name for name, extra in extras.items() if not (isinstance(extra, dict) and extra.get("in_key") is False)}


def _check_axis(name: str, pipeline: Pipeline) -> None:
    stages = ["download", "preprocess", "tokenize", "train"]
    stages += ["merge", "evaluate"] if pipeline.name == "sft-then-evaluate" else []
    name = pipeline.arguments.aliases().get(name, name)
    if not any(name in _stage_fields(stage) for stage in stages):
        raise ArgumentsError(
            f"--{name} changes nothing that a sweep compares, which is what training makes: give it one value"
        )


def unlike(axes: Mapping[str, Any]) -> list[str]:
    """The axes that change the rows, so that figures measured on held-out rows are not of the same rows."""
    return [name for name in axes if any(name in _stage_fields(stage) for stage in ROWS)]


def _check_metric(metric: str, trial: Trial) -> None:
    """Refuses, before anything runs, a metric that the trial will not measure.

    Raises:
        ArgumentsError: which are measured, or what is missing.
    """
    arguments: Any = trial.arguments
    measured = MEASURED[trial.pipeline.name]
    if arguments.num_labels is not None:
        measured = ("eval_acc", *MEASURED["sft"])  # there is no evaluation of a classifier but training's
    if metric not in measured:
        if getattr(arguments, "eval_dataset", None):
            return  # the names of a benchmark's scores are the benchmark's
        close = get_close_matches(metric, measured, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"Choose from: {', '.join(measured)}"
        raise ArgumentsError(f"--metric {metric} is not measured by {trial.pipeline.name}. {hint}")
    if metric not in ("eval_loss", "perplexity", "eval_acc"):
        return
    if not (arguments.split_dataset_ratio > 0 or arguments.val_dataset):
        raise ArgumentsError(
            f"--metric {metric} needs held-out rows: give `--split_dataset_ratio` or `--val_dataset`, or compare by "
            "--metric last_loss"
        )
    by_training = trial.pipeline.name == "sft" or arguments.num_labels is not None
    if by_training and arguments.eval_strategy == "no":
        raise ArgumentsError(
            f"--metric {metric} is measured by training only if it validates: drop `--eval_strategy no`, or compare by "
            "--metric last_loss"
        )


def check_trials(trials: Sequence[Trial], store: Store) -> None:
    """Plans every trial, so that a wrong path or model is said before the first one runs.

    Raises:
        UserError: what is wrong, and in which combination.
    """
    for trial in trials:
        try:
            plan(trial.pipeline, trial.arguments, store)
        except UserError as error:
            raise type(error)(f"{trial.title}: {error}") from None


@dataclass
class Row:
    """What became of a trial."""

    parameters: dict[str, Any]
    title: str
    run: str | None = None
    ok: bool = False
    seconds: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    cost: dict[str, Any] | None = None
    stages: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, trial: Trial, run: str, record: Mapping[str, Any]) -> Row:
        """The row of a run whose record is in the store."""
        shown = public(record)
        return cls(
            parameters=dict(trial.values),
            title=trial.title,
            run=run,
            ok=bool(record["ok"]),
            seconds=record["seconds"],
            metrics=metrics_of(record["stages"]),
            error=record.get("error"),
            cost=record.get("cost"),
            stages=shown["stages"],
        )

    def value(self, metric: str) -> float | None:
        """The figure that it is compared by, if it has one."""
        value = self.metrics.get(metric)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if self.ok and number else None  # type: ignore[arg-type]

    def work(self) -> str:
        """`4 ran, 2 cached`."""
        counts: dict[str, int] = {}
        for stage in self.stages:
            counts[stage["status"]] = counts.get(stage["status"], 0) + 1
        return ", ".join(f"{count} {status}" for status, count in counts.items() if status != "skipped")

    def to_json(self) -> dict[str, Any]:
        """One entry of `runs` in `--json`."""
        entry: dict[str, Any] = {
            "parameters": self.parameters,
            "ok": self.ok,
            "run": self.run,
            "seconds": round(self.seconds, 3),
            "metrics": self.metrics,
            "cost": self.cost,
            "stages": self.stages,
        }
        return {**entry, "error": self.error} if self.error else entry


def best_of(rows: Sequence[Row], metric: str) -> Row | None:
    """The row with the best figure, the first of equals; None if no run has one."""
    best: tuple[Row, float] | None = None
    for row in rows:
        value = row.value(metric)
        if value is not None and (best is None or is_better(value, best[1], metric)):
            best = (row, value)
    return best[0] if best else None


@dataclass
class SweepRecord:
    """One sweep: what `--json`, the table, the picture and the store are given."""

    id: str
    recipe_flow: str
    axes: dict[str, list[Any]]
    metric: str
    output_dir: str | None = None
    picture: str | None = None
    seconds: float = 0.0
    error: str | None = None
    exit_code: int = 0
    rows: list[Row] = field(default_factory=list)
    export: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        """Whether every combination, and the export of the best, ended well."""
        return self.error is None and all(row.ok for row in self.rows) and (self.export is None or self.export["ok"])

    @property
    def cost(self) -> dict[str, Any] | None:
        """Of all runs together, the export of the best among them."""
        return add_up([*(row.cost for row in self.rows), (self.export or {}).get("cost")])

    @property
    def best(self) -> Row | None:
        """The row that wins."""
        return best_of(self.rows, self.metric)

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints as the last line."""
        best = self.best
        record: dict[str, Any] = {
            "flow": "sweep",
            "ok": self.ok,
            "run": self.id,
            "seconds": round(self.seconds, 3),
            "recipe_flow": self.recipe_flow,
            "axes": self.axes,
            "metric": self.metric,
            "output_dir": self.output_dir,
            "picture": self.picture,
            "cost": self.cost,
            "runs": [row.to_json() for row in self.rows],
            "best": None,
            "stages": [],
        }
        if best is not None:
            record["best"] = {"parameters": best.parameters, self.metric: best.value(self.metric), "run": best.run}
            if self.export is not None:
                record["best"]["export"] = self.export
        return {**record, "error": self.error} if self.error else record

    def to_store(self) -> dict[str, Any]:
        """The form kept in the store, as that of other runs."""
        export = {"export": self.export}
        return {**self.to_json(), **export, "id": self.id, "arguments": {}, "exit_code": self.exit_code}

    @classmethod
    def from_store(cls, stored: Mapping[str, Any]) -> SweepRecord:
        """The inverse of `to_store`."""
        rows = [Row(**{"error": None, **run, "title": _title(run["parameters"])}) for run in stored["runs"]]
        same = ("recipe_flow", "axes", "metric", "output_dir", "picture", "seconds", "exit_code", "export")
        return cls(stored["id"], **{name: stored[name] for name in same}, error=stored.get("error"), rows=rows)


def trial_parameters(trial: Trial, folder: Path | None, name: str | None = None) -> dict[str, Any]:
    """What a trial's flow run is called with.

    Args:
        trial: whose.
        folder: the sweep's, below which the results go to a folder of their own; None leaves them in the store alone.
        name: of that folder, instead of the trial's.
    """
    given = {**given_parameters(trial.arguments), "add_version": False}
    if folder is not None:
        return {**given, "output_dir": str(folder / (name or trial.folder))}
    return {name: value for name, value in given.items() if name not in ("output_dir", "add_version")}

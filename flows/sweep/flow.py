"""A sweep as a Prefect flow: one parent, one child flow run for each combination.

sweep(recipe_flow="sft", parameters={"model": "M", "dataset": ["rows.jsonl"]}, axes={"lora_rank": [8, 16]})
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.states import Cancelled, Cancelling, Failed

from flows.dispatch import cancel_children
from flows.flow import flow_for
from flows.output import model_suffix, versioned
from flows.parameters import output_folder
from flows.pipeline import Pipeline, get_pipeline
from flows.record import public
from flows.server.workers import SILENCE_SECONDS, advice, find_deployment
from flows.sweep.comparison import draw_comparison, show_comparison
from flows.sweep.trials import EXPORTS, Row, SweepRecord, Trial, axes_of, check_trials, make_trials, trial_parameters
from flows.tasks import How
from stages.artifacts.store import Store, open_store
from stages.errors import ArgumentsError, Interrupted, MartletError, UnknownReference

__all__ = ["sweep"]

POLL_SECONDS = 1.0
PICTURE = "sweep.png"


def _run_name() -> str:
    from prefect.runtime import flow_run

    given = flow_run.parameters
    axes = " × ".join(f"{name} ({len(values)})" for name, values in given["axes"].items())
    return f"{model_suffix(str(given['parameters'].get('model', '')))} · {axes}"


@flow(name="sweep", flow_run_name=_run_name, persist_result=False, on_cancellation=[cancel_children])
def sweep(
    recipe_flow: str,
    parameters: dict[str, Any],
    axes: dict[str, list[Any]],
    metric: str = "eval_loss",
    export_best: bool = False,
    run_on: Literal["here", "workers"] = "here",
) -> Any:
    """Runs every combination, compares them, and takes the best one further if asked to.

    Args:
        recipe_flow: sft, or sft-then-export, of which a trial is the part up to the held-out loss.
        parameters: what all combinations share.
        axes: values by parameter.
        metric: what is compared.
        export_best: run the whole of sft-then-export with the best values.
        run_on: one after the other in this process, or all at once on workers.
    """
    run = cast(FlowRun, cast(FlowRunContext, FlowRunContext.get()).flow_run)
    record = SweepRecord(str(run.id), recipe_flow, axes, metric)
    store, started = open_store(), time.monotonic()
    try:
        _run(record, store, parameters, export_best, Workers(run.id, run.run_count) if run_on == "workers" else None)
    except Interrupted as error:
        record.error, record.exit_code = str(error), error.exit_code
        return Cancelled(message=str(error))
    except MartletError as error:
        record.error, record.exit_code = str(error), error.exit_code
        raise
    except BaseException as error:
        record.error, record.exit_code = f"{type(error).__name__}: {error}", 1
        raise
    finally:
        record.exit_code = record.exit_code or (0 if record.ok else 1)
        record.seconds = time.monotonic() - started
        store.save_run(record.to_store())
    show_comparison(record)
    failed = [row.title for row in record.rows if not row.ok]
    if failed:
        return Failed(message=f"{len(failed)} of {len(record.rows)} failed: {', '.join(failed)}")
    return Failed(message="the export of the best one failed") if not record.ok else record.to_json()


def _run(
    record: SweepRecord, store: Store, parameters: Mapping[str, Any], export_best: bool, workers: Workers | None
) -> None:
    if export_best and record.recipe_flow not in EXPORTS:
        raise ArgumentsError(f"--export_best needs a recipe of {', '.join(EXPORTS)}, not of {record.recipe_flow}")
    trials = make_trials(record.recipe_flow, parameters, record.axes, record.metric)
    record.axes = axes_of(trials)
    check_trials(trials, store)
    folder = _folder(trials[0])
    record.output_dir = str(folder.resolve())
    calls = [(trial.pipeline, trial.title, trial_parameters(trial, None if workers else folder)) for trial in trials]
    runs = workers.run(calls) if workers else _one_by_one(calls)
    for trial, (run, message) in zip(trials, runs, strict=False):
        record.rows.append(_row(trial, run, message, store))
        _stop_if_stopped(run, store)
    if draw_comparison(record, folder / PICTURE):
        record.picture = str((folder / PICTURE).resolve())
    best = record.best
    if export_best and best is not None:
        trial = next(trial for trial in trials if trial.title == best.title)
        given = trial_parameters(trial, None if workers else folder, "best")
        call = (get_pipeline(record.recipe_flow), f"best: {trial.title}", given)
        run, message = next(iter(workers.run([call]) if workers else _one_by_one([call])))
        record.export = _exported(run, message, store)
        _stop_if_stopped(run, store)


def _folder(trial: Trial) -> Path:
    arguments: Any = trial.arguments
    root = Path(arguments.output_dir or Path("output") / model_suffix(arguments.model))
    return versioned(root) if arguments.add_version else root


def _row(trial: Trial, run: str, message: str, store: Store) -> Row:
    try:
        return Row.of(trial, run, store.run(run))
    except UnknownReference:  # it ended before its first stage could begin
        return Row(dict(trial.values), trial.title, run, error=message)


def _exported(run: str, message: str, store: Store) -> dict[str, Any]:
    try:
        return public(store.run(run))
    except UnknownReference:
        return {"ok": False, "run": run, "error": message, "stages": []}


def _stop_if_stopped(run: str, store: Store) -> None:
    """A child that was told to end means that the sweep is to end."""
    try:
        exit_code = store.run(run).get("exit_code")
    except UnknownReference:
        return
    if exit_code == Interrupted.exit_code:
        raise Interrupted("the sweep was stopped; the same command goes on where it was")


CallOf = tuple[Pipeline, str, dict[str, Any]]


def _one_by_one(calls: Sequence[CallOf]) -> Any:
    """Runs each in this process; gives (run id, message) as they end."""
    for number, (pipeline, title, given) in enumerate(calls, 1):
        print(f"sweep: run {number} of {len(calls)}: {title}", file=sys.stderr, flush=True)
        child = flow_for(pipeline, place=lambda arguments, _how: output_folder(arguments), how=How())
        named = child.with_options(flow_run_name=title.replace("{", "(").replace("}", ")"))
        state = cast(State[Any], named(**given, return_state=True))
        yield str(state.state_details.flow_run_id), state.message or state.name or ""


class Workers:
    """Starts runs of the deployments FLOW/workers, all at once, and waits for them."""

    def __init__(self, parent: UUID, attempt: int) -> None:
        """`parent` and which of its attempts this is: a repeated call of the same attempt starts nothing twice."""
        self.parent = parent
        self.attempt = attempt

    def run(self, calls: Sequence[CallOf]) -> list[tuple[str, str]]:
        """Gives (run id, message) of each, in order.

        Raises:
            UserError: there is no such deployment.
            Interrupted: the sweep was cancelled, and with it what it has started.
        """
        with get_client(sync_client=True) as client:
            for pipeline, _, _ in calls:
                find_deployment(client, f"{pipeline.name}/workers")
            runs: list[UUID] = []
            try:
                runs += [self._start(*call) for call in calls]
                return self._wait(client, runs)
            except BaseException:
                _cancel(client, runs)
                raise

    def _start(self, pipeline: Pipeline, title: str, given: dict[str, Any]) -> UUID:
        key = f"{self.parent}-{self.attempt}-{title}"
        name = title.replace("{", "(").replace("}", ")")
        run: Any = run_deployment(
            f"{pipeline.name}/workers", parameters=given, timeout=0, idempotency_key=key, flow_run_name=name
        )
        print(f"sweep: asked {pipeline.name}/workers to run {title}", file=sys.stderr, flush=True)
        found: UUID = run.id
        return found

    def _wait(self, client: SyncPrefectClient, runs: Sequence[UUID]) -> list[tuple[str, str]]:
        ended: dict[UUID, str] = {}
        silent_until = time.monotonic() + SILENCE_SECONDS
        while len(ended) < len(runs):
            for run in [run for run in runs if run not in ended]:
                found = client.read_flow_run(run)
                if found.state is not None and found.state.is_final():
                    ended[run] = found.state.message or found.state.name or ""
                elif found.state is not None and found.state.is_scheduled() and time.monotonic() > silent_until:
                    silent_until = time.monotonic() + 10 * SILENCE_SECONDS
                    print(f"sweep: {advice(client, found, found.name)}", file=sys.stderr, flush=True)
            parent = client.read_flow_run(self.parent).state
            if parent is not None and (parent.is_cancelling() or parent.is_final()):
                raise Interrupted(f"the sweep was ended on the server ({parent.name}), and with it its runs")
            time.sleep(POLL_SECONDS)
        return [(str(run), ended[run]) for run in runs]


def _cancel(client: SyncPrefectClient, runs: Sequence[UUID]) -> None:
    for run in runs:
        state = client.read_flow_run(run).state
        if state is None or not state.is_final():
            client.set_flow_run_state(run, Cancelling(message="the sweep that asked for it was told to end"))

"""A stage as a Prefect task: retried unless the user is wrong, shown as Cached on a hit, its results in the UI.

It runs in this process or, if `How.run_on` says so, on a worker; whatever the place, the store is asked first. No bytes
pass through Prefect: a task takes and gives references, and the store is the only cache.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger
from prefect.states import Completed
from prefect.tasks import Task

from flows.dispatch import Dispatch, WorkerFailed
from flows.states import shown
from flows.ui import PrefectReporter
from stages.arguments.base import Arguments
from stages.artifacts.describe import describe_ref
from stages.artifacts.reference import ArtifactRef
from stages.artifacts.store import open_store
from stages.errors import Interrupted, UserError
from stages.registry import get_stage
from stages.run import StageResult, run_stage
from stages.stopping import StopSignals

__all__ = ["HERE", "How", "Outcome", "run_as_task", "task_for"]

RETRIES = 2
RETRY_DELAY_SECONDS = [2.0, 20.0]


@dataclass(frozen=True)
class How:
    """In which way a flow runs its stages.

    Attributes:
        run_on: `here`, in this process, or `workers`, each as a run of its own deployment.
        force: stages that run even if the store has their result.
        asked: what whoever asked for this stage on this worker expects of it (see `dispatch.check_asked`).
    """

    run_on: str = "here"
    force: frozenset[str] = frozenset()
    asked: Mapping[str, Any] | None = None


HERE = How()


def may_retry(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """A user's error comes out the same however often it is tried; so does being told to stop.

    What has failed on a worker has been tried again there; a worker that was lost is worth another one.
    """
    error = state.result(raise_on_failure=False)
    return not isinstance(error, (UserError, Interrupted, WorkerFailed))


@contextmanager
def stop_request() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or Ctrl-C came while a stage runs, so that training saves before it ends."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    with StopSignals() as signals:
        yield signals.is_requested


@contextmanager
def waiting() -> Iterator[Callable[[str], None]]:
    """Shows the flow run as `AwaitingLease` from the call of what it gives, until the block ends."""
    context = FlowRunContext.get()
    with ExitStack() as stack:

        def on_wait(holder: str) -> None:
            if context is not None and context.flow_run is not None:
                client = stack.enter_context(get_client(sync_client=True))
                show = stack.enter_context(shown(client, context.flow_run.id))
                show("AwaitingLease", f"{holder} computes the same; its result will be taken")

        yield on_wait


class Outcome:
    """A stage's result as one thing that Prefect does not look into.

    It follows every string and reference inside of a dataclass, and would draw an arrow to whatever task gave an equal
    word, such as an input's name, before.
    """

    def __init__(self, result: StageResult) -> None:
        self.result = result


@task(
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAY_SECONDS,
    retry_condition_fn=may_retry,
)
def run_as_task(
    stage: str,
    arguments: Arguments,
    inputs: Mapping[str, Outcome | ArtifactRef | Path],
    title: str,
    how: How = HERE,
) -> State[Outcome]:
    """Runs one stage and reports to the UI; the returned state is named `Cached` on a hit.

    An input is the result of a task before this one, an artifact in the store, or a path that is taken in.
    """
    sources = {name: value.result.artifact if isinstance(value, Outcome) else value for name, value in inputs.items()}
    reporter, logger, store = PrefectReporter(title), get_run_logger(), open_store()
    force = stage in how.force
    try:
        with stop_request() as stop_requested, waiting() as on_wait:
            dispatch = Dispatch(store, reporter, logger, stop_requested, force)
            result = run_stage(
                get_stage(stage),
                arguments,
                sources,
                store=store,
                reporter=reporter,
                logger=logger,
                stop_requested=stop_requested,
                force=force,
                on_wait=on_wait,
                expected=how.asked["body"] if how.asked else None,
                elsewhere=dispatch if how.run_on == "workers" else None,
            )
        reporter.show_result(result)
    finally:
        reporter.flush()
    reporter.terminal.close(_sentence(result))
    names = {"cached": "Cached", "resumed": "Resumed"}
    if result.status in names:
        _rename(f"{title} · {result.status}")
    message = f"{title}: {_sentence(result)}, {describe_ref(result.artifact)}"
    return Completed(name=names.get(result.status), message=message, data=Outcome(result))


def _rename(name: str) -> None:
    """The UI's graph shows names and colours, and of a state only the type: a hit would look like a run."""
    context = TaskRunContext.get()
    if context is not None:
        context.task_run.name = name  # Prefect sends it on with the state to come


def _sentence(result: StageResult) -> str:
    """`ran in 12.3 s`, `cached`."""
    return "cached" if result.status == "cached" else f"{result.status} in {result.seconds:.1f} s"


def task_for(stage: str, title: str) -> Task[..., Any]:
    """The task under its stage's name; the run is named after the call, as in `evaluate (tuned)`."""
    return run_as_task.with_options(name=stage, task_run_name=title.replace("{", "(").replace("}", ")"))

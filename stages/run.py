"""Runs one stage: key → look up → lease → check out → call → commit. It knows no orchestrator.

result = run_stage(STAGE, arguments, {"model": ref, "adapter": Path("adapter")}, store=open_store())
planned = plan_stage(STAGE, arguments, {"model": ref}, store=open_store())
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from stages.artifacts.key import changes, explain
from stages.artifacts.manifest import ActionRecord, Manifest
from stages.artifacts.reference import ArtifactRef
from stages.attempt import Attempt, Logger, can_resume
from stages.context import NullReporter, Reporter
from stages.errors import WrongWorker
from stages.request import Request, Source, make_request

if TYPE_CHECKING:
    from stages.arguments.base import Arguments
    from stages.artifacts.store import Store
    from stages.stage import Stage

__all__ = ["PlannedStage", "StageResult", "plan_stage", "run_stage"]

COMPARED_RUNS = 200


@dataclass(frozen=True)
class StageResult:
    """What became of a stage.

    Attributes:
        stage: its name.
        status: `ran`, `cached` (nothing was computed), or `resumed` (went on from an interrupted run).
        key: the action key.
        artifact: what it made.
        attachments: the digest of the tree of logs and curves beside it.
        seconds: spent in the stage's function; on a hit, in looking it up.
        metrics: what the stage measured, then or now.
        inputs: what it was given, taken in.
        peak_memory_bytes: see `machine.py`; None on a hit.
    """

    stage: str
    status: Literal["ran", "cached", "resumed"]
    key: str
    artifact: ArtifactRef
    attachments: str | None
    seconds: float
    metrics: Mapping[str, Any]
    inputs: Mapping[str, ArtifactRef] = field(default_factory=dict)
    peak_memory_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The form of `--json`."""
        return {
            "stage": self.stage,
            "status": self.status,
            "key": self.key,
            "artifact": self.artifact.to_json(),
            "attachments": self.attachments,
            "seconds": round(self.seconds, 3),
            "peak_memory_bytes": self.peak_memory_bytes,
            "metrics": dict(self.metrics),
        }


@dataclass(frozen=True)
class PlannedStage:
    """What a stage would do, and why.

    Attributes:
        stage: its name.
        status: `cached`, `run`, or `resume` (from an interrupted run's scratch folder).
        reason: for people.
        key: the action key.
        artifact: the result, if it is there.
    """

    stage: str
    status: Literal["cached", "run", "resume"]
    reason: str
    key: str
    artifact: ArtifactRef | None = None


def run_stage(
    stage: Stage[Any],
    arguments: Arguments,
    inputs: Mapping[str, Source],
    *,
    store: Store,
    reporter: Reporter | None = None,
    logger: Logger | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
    force: bool = False,
    on_wait: Callable[[str], None] | None = None,
    expected: Mapping[str, Any] | None = None,
    elsewhere: Callable[[Request], StageResult] | None = None,
) -> StageResult:
    """Answers from the store, or runs the stage and keeps what it makes.

    Args:
        stage: what to run.
        arguments: checked arguments of its own model.
        inputs: artifacts in the store, or paths, which are taken in.
        store: where results are looked up and kept.
        reporter: gets progress, metrics, pictures.
        logger: gets facts.
        stop_requested: looked at by long stages, which then save and raise `Interrupted`.
        force: run in spite of a hit; a result that then differs is logged.
        on_wait: told once who holds the key, if another run computes it at this moment.
        expected: the body of the key (see `key.py`) of whoever asked for this on another machine.
        elsewhere: computes what the store does not have on another machine, which takes the lease there.

    Raises:
        UserError: an input or an argument is wrong, or this machine would compute something else than was expected.
        StageFailed: the stage broke down; its scratch folder is kept.
        StoreError: no space, no permission.
        Interrupted: the stage was told to stop and did.
    """
    began = time.monotonic()
    log = logger or logging.getLogger(f"martlet.{stage.name}")
    request = make_request(stage, arguments, inputs, store, store.take_in)
    if expected is not None:
        _check_expected(request, expected)
    hit = None if force else _look_up(request, store)
    if hit is None and elsewhere is not None:
        return elsewhere(request)
    if hit is None:
        waits = on_wait or (lambda holder: log.info("%s: waiting for %s, which runs the same", stage.name, holder))
        with store.lease(request.key, waits, stop_requested):
            hit = None if force else _look_up(request, store)  # whoever was waited for has answered it
            if hit is None:
                return _ran(Attempt(request, store, reporter or NullReporter(), log, stop_requested).run())
    log.info("%s: cached %s", stage.name, hit.artifact.digest[:19])
    return _cached(request, hit, time.monotonic() - began, store, log)


def plan_stage(stage: Stage[Any], arguments: Arguments, inputs: Mapping[str, Source], *, store: Store) -> PlannedStage:
    """What `run_stage` would do. It copies nothing and reads only those of a user's files that are new to the store.

    Raises:
        UserError: as `run_stage`.
    """
    request = make_request(stage, arguments, inputs, store, store.peek)
    if hit := _look_up(request, store):
        when = hit.ended[:16].replace("T", " ")
        return PlannedStage(stage.name, "cached", f"made {when} UTC", request.key, hit.artifact)
    if can_resume(request, store) or (stage.can_resume is not None and store.has_kept_work(request.key)):
        return PlannedStage(stage.name, "resume", "a run of it was interrupted", request.key)
    return PlannedStage(stage.name, "run", _reason(request, store), request.key)


def _check_expected(request: Request, expected: Mapping[str, Any]) -> None:
    """Another version of the code or of a library would make another artifact under another key."""
    differences = changes(expected, request.body, {})
    if differences:
        raise WrongWorker(
            f"this worker would compute another {request.stage.name} than the flow asked for (asked → here): "
            f"{', '.join(differences)}. Give it the flow's version of Martlet: make its image or environment anew"
        )


def _look_up(request: Request, store: Store) -> ActionRecord | None:
    return store.action(request.key) if request.stage.cacheable else None


def _reason(request: Request, store: Store) -> str:
    if not request.stage.cacheable:
        return "always runs"
    previous = (action.body for action in islice(store.actions_of(request.stage.name), COMPARED_RUNS))
    fields = type(request.arguments).model_fields
    defaults = {name: info.get_default() for name, info in fields.items() if not info.is_required()}
    return explain(request.body, previous, defaults)


def _ran(manifest: Manifest) -> StageResult:
    return StageResult(
        stage=manifest.stage,
        status="resumed" if manifest.resumed else "ran",
        key=manifest.key,
        artifact=manifest.artifact,
        attachments=manifest.attachments,
        seconds=manifest.seconds,
        metrics=manifest.metrics,
        inputs=manifest.inputs,
        peak_memory_bytes=manifest.peak_memory_bytes,
    )


def _cached(request: Request, hit: ActionRecord, seconds: float, store: Store, log: Logger) -> StageResult:
    attachments = hit.attachments
    if attachments is not None and not store.is_whole(attachments):
        log.warning("%s: the logs and curves beside %s are damaged", request.stage.name, hit.artifact.digest[:19])
        attachments = None
    return StageResult(
        stage=request.stage.name,
        status="cached",
        key=request.key,
        artifact=hit.artifact,
        attachments=attachments,
        seconds=seconds,
        metrics=hit.metrics,
        inputs=request.inputs,
    )

"""Runs one stage: key → look up → lease → check out → call → commit. It knows no orchestrator.

result = run_stage(STAGE, arguments, {"model": ref, "adapter": Path("adapter")}, store=open_store())
planned = plan_stage(STAGE, arguments, {"model": ref}, store=open_store())
"""

from __future__ import annotations

import json
import logging
import math
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from stages.artifacts.disk import is_no_space, no_space, remove_folder
from stages.artifacts.key import action_key, explain
from stages.artifacts.machine import machine_facts, peak_memory
from stages.artifacts.manifest import ActionRecord, Manifest
from stages.artifacts.reference import KINDS, ArtifactRef
from stages.artifacts.tree import Tree
from stages.context import Context, NullReporter, Reporter
from stages.errors import MartletError, StageFailed, UserError

if TYPE_CHECKING:
    from stages.arguments.base import Arguments
    from stages.artifacts.store import Store
    from stages.stage import Stage

__all__ = ["PlannedStage", "StageResult", "plan_stage", "run_stage"]

Logger = logging.Logger | logging.LoggerAdapter[Any]
Source = ArtifactRef | Path

MAX_MESSAGE_LENGTH = 400
COMPARED_RUNS = 200

# The folders of a key's scratch folder: WORK is the one that survives retries.
WORK, OUT, INPUTS, ATTACHMENTS, TRACEBACK = "work", "out", "inputs", "attachments", "traceback.txt"


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

    Raises:
        UserError: an input or an argument is wrong.
        StageFailed: the stage broke down; its scratch folder is kept.
        StoreError: no space, no permission.
        Interrupted: the stage was told to stop and did.
    """
    began = time.monotonic()
    log = logger or logging.getLogger(f"martlet.{stage.name}")
    request = _request(stage, arguments, inputs, store.take_in, store)
    hit = None if force or not stage.cacheable else store.action(request.key)
    if hit is None:
        waits = on_wait or (lambda holder: log.info("%s: waiting for %s, which runs the same", stage.name, holder))
        with store.lease(request.key, waits, stop_requested):
            hit = None if force or not stage.cacheable else store.action(request.key)
            if hit is None:
                return _Attempt(request, store, reporter or NullReporter(), log, stop_requested).run()
    log.info("%s: cached %s", stage.name, hit.artifact.digest[:19])
    return _cached(request, hit, time.monotonic() - began, store, log)


def plan_stage(stage: Stage[Any], arguments: Arguments, inputs: Mapping[str, Source], *, store: Store) -> PlannedStage:
    """What `run_stage` would do. It copies nothing and reads only those of a user's files that are new to the store.

    Raises:
        UserError: as `run_stage`.
    """
    request = _request(stage, arguments, inputs, lambda path, kind: store.peek(path, kind), store)
    if stage.cacheable and (hit := store.action(request.key)):
        return PlannedStage(stage.name, "cached", f"made {hit.ended[:16].replace('T', ' ')}", request.key, hit.artifact)
    if _can_resume(stage, store.scratch_path(request.key) / WORK):
        return PlannedStage(stage.name, "resume", "a run was interrupted", request.key)
    if not stage.cacheable:
        return PlannedStage(stage.name, "run", "always runs", request.key)
    return PlannedStage(stage.name, "run", _reason(request, store), request.key)


def _reason(request: _Request, store: Store) -> str:
    previous = []
    for action in store.actions_of(request.stage.name):
        previous.append(action.body)
        if len(previous) == COMPARED_RUNS:
            break
    fields = type(request.arguments).model_fields
    defaults = {name: info.get_default() for name, info in fields.items() if not info.is_required()}
    return explain(request.body, previous, defaults)


# --- what is asked for ---


@dataclass(frozen=True)
class _Request:
    """A stage with pinned arguments and known inputs, and so with a key."""

    stage: Stage[Any]
    arguments: Arguments
    inputs: Mapping[str, ArtifactRef]
    key: str
    body: Mapping[str, Any]


def _request(
    stage: Stage[Any],
    arguments: Arguments,
    inputs: Mapping[str, Source],
    take_in: Callable[[Path, Any], ArtifactRef | Tree],
    store: Store,
) -> _Request:
    sources: dict[str, Source] = dict(inputs)
    if stage.prepare is not None:
        prepared = stage.prepare(arguments)
        arguments = prepared.arguments
        for name in prepared.inputs.keys() & sources.keys():
            raise UserError(
                f"{stage.name}: input {name} is given, and its arguments name {prepared.inputs[name]} for it"
            )
        sources.update(prepared.inputs)
    _check_names(stage, sources)
    views = {}
    refs = {}
    for name, source in sorted(sources.items()):
        wanted = stage.inputs[name]
        taken = source if isinstance(source, ArtifactRef) else take_in(source, wanted.kinds[0])
        tree = taken if isinstance(taken, Tree) else store.tree(taken)
        if tree.kind not in wanted.kinds:
            raise UserError(
                f"input {name} of {stage.name} takes {' or '.join(wanted.kinds)}, "
                f"but {tree.digest[:19]} is of kind {tree.kind}"
            )
        view = tree.select(wanted.reads)
        if not view.files:
            where = source if isinstance(source, Path) else tree.digest[:19]
            raise UserError(f"input {name} of {stage.name}: {where} has no file that matches {' '.join(wanted.reads)}")
        views[name] = view.digest
        refs[name] = tree.ref
    key, body = action_key(stage, arguments, views)
    return _Request(stage, arguments, refs, key, body)


def _check_names(stage: Stage[Any], sources: Mapping[str, Source]) -> None:
    for name in sources:
        if name not in stage.inputs:
            raise UserError(f"{stage.name} has no input {name!r}. Choose from: {', '.join(stage.inputs) or 'none'}")
    missing = [name for name, wanted in stage.inputs.items() if wanted.required and name not in sources]
    if missing:
        raise UserError(f"{stage.name} needs its input{'s' * (len(missing) > 1)} {' and '.join(missing)}")


def _can_resume(stage: Stage[Any], work: Path) -> bool:
    return stage.can_resume is not None and work.is_dir() and stage.can_resume(work)


def _cached(request: _Request, hit: ActionRecord, seconds: float, store: Store, log: Logger) -> StageResult:
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


# --- a run ---


class _Attempt:
    """One try at a stage, in the scratch folder of its key, whose lease is held."""

    def __init__(
        self, request: _Request, store: Store, reporter: Reporter, log: Logger, stop_requested: Callable[[], bool]
    ) -> None:
        self.request = request
        self.stage = request.stage
        self.store = store
        self.reporter = reporter
        self.log = log
        self.stop_requested = stop_requested
        self.folder = store.scratch(request.key)
        self.resumes = _can_resume(self.stage, self.folder / WORK)

    def run(self) -> StageResult:
        """Calls the stage and commits what it made; the scratch folder is kept unless all of that succeeds."""
        started = datetime.now(UTC)
        try:
            self._prepare()
            with peak_memory() as peak:
                began = time.monotonic()
                metrics = self._call()
                seconds = time.monotonic() - began
            manifest = Manifest(
                artifact=self._keep_output(),
                stage=self.stage.name,
                key=self.request.key,
                body=self.request.body,
                inputs=self.request.inputs,
                attachments=self._keep_attachments(),
                metrics=_plain_metrics(metrics),
                started=started.isoformat(timespec="milliseconds"),
                ended=datetime.now(UTC).isoformat(timespec="milliseconds"),
                seconds=round(seconds, 3),
                peak_memory_bytes=peak.bytes,
                resumed=self.resumes,
                machine=machine_facts(),
            )
            self._compare(manifest)
            self.store.commit(manifest)
        finally:
            remove_folder(self.folder / INPUTS)
        self.store.discard_scratch(self.request.key)
        return self._result(manifest)

    def _prepare(self) -> None:
        """Empties what a former try left, but for its work, and checks the inputs out."""
        for name in (OUT, INPUTS) if self.resumes else (OUT, INPUTS, ATTACHMENTS):
            remove_folder(self.folder / name)
        for name in (WORK, OUT, ATTACHMENTS):
            (self.folder / name).mkdir(exist_ok=True)
        for name, ref in self.request.inputs.items():
            self.store.check_out(ref, self.folder / INPUTS / name, self.stage.inputs[name].reads)
        if self.resumes:
            self.log.info("%s: going on from an interrupted run", self.stage.name)

    def _call(self) -> Mapping[str, Any]:
        """The stage's own function; what it raises becomes one line."""
        context = Context(
            scratch=self.folder / WORK,
            attachments=self.folder / ATTACHMENTS,
            logger=cast(logging.Logger, self.log),  # an adapter answers the same calls
            reporter=self.reporter,
            stop_requested=self.stop_requested,
        )
        inputs = {name: self.folder / INPUTS / name for name in self.request.inputs}
        try:
            metrics: Mapping[str, Any] = self.stage.function(self.request.arguments, inputs, self.folder / OUT, context)
        except MartletError:
            raise
        except Exception as error:
            if is_no_space(error):
                raise no_space(Path(self.store.location)) from error
            raise self._failed(error) from error
        return metrics or {}

    def _failed(self, error: Exception) -> StageFailed:
        """The one line of a breakdown; its traceback goes to the scratch folder, which is kept."""
        text = "".join(traceback.format_exception(error))
        self.log.debug("%s", text)
        place = self.folder / TRACEBACK
        try:
            place.write_text(text)
            self.log.info("%s: the traceback is in %s", self.stage.name, place)
        except OSError as problem:
            self.log.warning("%s: the traceback could not be written: %s", self.stage.name, problem)
        lines = str(error).strip().splitlines()
        message = lines[0][:MAX_MESSAGE_LENGTH] if lines else "no message"
        return StageFailed(f"{self.stage.name} failed: {type(error).__name__}: {message}")

    def _keep_output(self) -> ArtifactRef:
        kind = self.stage.output_kind(self.request.arguments)
        if kind not in KINDS:
            raise StageFailed(f"{self.stage.name} failed: it makes {kind!r}, which is no kind of artifact")
        try:
            return self.store.put(self.folder / OUT, kind, move=True)
        except UserError as error:
            raise StageFailed(f"{self.stage.name} failed: its output cannot be kept: {error}") from error

    def _keep_attachments(self) -> str | None:
        folder = self.folder / ATTACHMENTS
        if not any(path.is_file() for path in folder.rglob("*")):
            return None
        try:
            return self.store.put(folder, "files", move=True).digest
        except UserError as error:
            raise StageFailed(f"{self.stage.name} failed: its attachments cannot be kept: {error}") from error

    def _compare(self, manifest: Manifest) -> None:
        """A stage that makes two things of one key is a defect worth a line."""
        before = self.store.recorded(manifest.key)
        if self.stage.cacheable and before and before.artifact.digest != manifest.artifact.digest:
            self.log.warning(
                "%s: the same key gave %s before and gives %s now: the stage is not deterministic",
                self.stage.name,
                before.artifact.digest[:19],
                manifest.artifact.digest[:19],
            )

    def _result(self, manifest: Manifest) -> StageResult:
        return StageResult(
            stage=self.stage.name,
            status="resumed" if self.resumes else "ran",
            key=manifest.key,
            artifact=manifest.artifact,
            attachments=manifest.attachments,
            seconds=manifest.seconds,
            metrics=manifest.metrics,
            inputs=manifest.inputs,
            peak_memory_bytes=manifest.peak_memory_bytes,
        )


def _plain_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics as JSON holds them: NumPy's and torch's numbers as Python's, those that are not finite as text."""
    plain: dict[str, Any] = {}
    for name, value in metrics.items():
        number = value.item() if hasattr(value, "item") else value
        plain[name] = str(number) if isinstance(number, float) and not math.isfinite(number) else number
    try:
        json.dumps(plain)
    except (TypeError, ValueError) as error:
        raise StageFailed(f"a metric is not JSON: {error}") from error
    return plain

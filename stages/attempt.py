"""One try at a stage in the scratch folder of its key: check out → call → keep. `run.py` holds the lease meanwhile."""

from __future__ import annotations

import json
import logging
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stages.artifacts.disk import is_no_space, no_space, remove_folder, store_errors
from stages.artifacts.machine import machine_facts, peak_memory
from stages.artifacts.manifest import Manifest
from stages.artifacts.reference import KINDS, ArtifactRef
from stages.context import Context, Reporter
from stages.errors import MartletError, StageFailed, UserError

if TYPE_CHECKING:
    from stages.artifacts.store import Store
    from stages.request import Request

__all__ = ["Attempt", "Logger", "can_resume", "plain"]

Logger = logging.Logger | logging.LoggerAdapter[Any]

MAX_MESSAGE_LENGTH = 400

# The folders of a key's scratch folder: WORK is the one that survives retries, ATTACHMENTS does where a run resumes.
WORK, OUT, INPUTS, ATTACHMENTS, TRACEBACK = "work", "out", "inputs", "attachments", "traceback.txt"


def can_resume(request: Request, store: Store) -> bool:
    """Whether an interrupted run left something to go on from."""
    work = store.scratch_path(request.key) / WORK
    return request.stage.can_resume is not None and work.is_dir() and request.stage.can_resume(work)


class Attempt:
    """One try, as a sequence of steps that share a folder."""

    def __init__(
        self, request: Request, store: Store, reporter: Reporter, log: Logger, stop_requested: Callable[[], bool]
    ) -> None:
        """The lease on the request's key must be held until `run` has returned."""
        self.request = request
        self.stage = request.stage
        self.store = store
        self.reporter = reporter
        self.log = log
        self.stop_requested = stop_requested
        self.folder = store.scratch(request.key)  # first: it may bring what another host has left
        self.resumes = can_resume(request, store)

    def run(self) -> Manifest:
        """Calls the stage and commits what it made; the scratch folder is kept unless all of that succeeds."""
        started = datetime.now(UTC)
        try:
            with store_errors(self.store.place):
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
                metrics=metrics,
                started=started.isoformat(timespec="milliseconds"),
                ended=datetime.now(UTC).isoformat(timespec="milliseconds"),
                seconds=round(seconds, 3),
                peak_memory_bytes=peak.bytes,
                resumed=self.resumes,
                machine=machine_facts(),
            )
            self._compare(manifest)
            manifest = self._commit(manifest)
        except BaseException as error:
            self._leave(error)
            raise
        self.store.discard_scratch(self.request.key)
        return manifest

    def _commit(self, manifest: Manifest) -> Manifest:
        """Where another host has answered the key meanwhile, its answer stands."""
        action = self.store.commit(manifest)
        if action.artifact == manifest.artifact:
            return manifest
        self.log.warning(
            "%s: another host was faster; its result %s stands", self.stage.name, action.artifact.digest[:19]
        )
        return replace(
            manifest,
            artifact=action.artifact,
            attachments=action.attachments,
            metrics=action.metrics,
            ended=action.ended,
        )

    def _leave(self, error: BaseException) -> None:
        """Leaves what the next try can go on from, on this host or another, and nothing else of a user's error."""
        for name in (INPUTS, OUT):
            remove_folder(self.folder / name)
        try:
            if can_resume(self.request, self.store):
                self.store.keep_work(self.request.key)
            elif isinstance(error, UserError):
                self.store.discard_scratch(self.request.key)
        except MartletError as problem:  # the error that led here says more
            self.log.warning("%s: %s", self.stage.name, problem)

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

    def _call(self) -> dict[str, Any]:
        """The stage's own function; what it raises becomes one line."""
        context = Context(
            scratch=self.folder / WORK,
            attachments=self.folder / ATTACHMENTS,
            logger=cast(logging.Logger, self.log),  # an adapter answers the same calls
            reporter=self.reporter,
            checkpointed=self._keep,
            stop_requested=self.stop_requested,
        )
        inputs = {name: self.folder / INPUTS / name for name in self.request.inputs}
        try:
            metrics = self.stage.function(self.request.arguments, inputs, self.folder / OUT, context)
            return plain(metrics or {})
        except MartletError:
            raise
        except Exception as error:
            if is_no_space(error):
                raise no_space(self.store.place) from error
            raise self._failed(error) from error

    def _keep(self, checkpoints: Sequence[Path]) -> None:
        """Keeps checkpoints, and the logs up to them, where another host finds them should this one die."""
        try:
            self.store.keep_work(self.request.key, checkpoints, self.folder / ATTACHMENTS)
        except MartletError as problem:
            self.log.warning("%s: this checkpoint stays on this host: %s", self.stage.name, problem)

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
        if not _has_files(self.folder / OUT):
            raise StageFailed(f"{self.stage.name} failed: it left its output folder empty")
        try:
            return self.store.put(self.folder / OUT, kind, move=True)
        except UserError as error:
            raise StageFailed(f"{self.stage.name} failed: its output cannot be kept: {error}") from error

    def _keep_attachments(self) -> str | None:
        folder = self.folder / ATTACHMENTS
        if not _has_files(folder):
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


def _has_files(folder: Path) -> bool:
    return any(not path.is_dir() for path in folder.rglob("*"))


def plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics as JSON holds them: NumPy's and torch's numbers as Python's, those that are not finite as text."""
    plain: dict[str, Any] = {}
    for name, value in metrics.items():
        number = value.item() if hasattr(value, "item") else value
        plain[name] = str(number) if isinstance(number, float) and not math.isfinite(number) else number
    json.dumps(plain)
    return plain

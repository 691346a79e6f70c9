"""What is to be seen of one run, sent by a thread of its own: `board.show("train", "markdown", text)`.

A server that is slow, or away for a while, holds no stage up: of what waits under a key only the newest is sent, and
what cannot be sent is said in the log and forgotten.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.context import FlowRunContext, TaskRunContext

__all__ = ["Board", "Kind"]

Kind = Literal["progress", "markdown"]

SECONDS_IDLE = 30.0
SECONDS_TO_FLUSH = 10.0

logger = logging.getLogger("martlet.ui")


@dataclass(frozen=True)
class Shown:
    """One artifact as it is to be seen."""

    kind: Kind
    data: Any
    description: str


class Board:
    """The artifacts of the task run, or else the flow run, in which it is made.

    Prefect keeps every version of an artifact that is made anew, so one that is there is changed in place; and not by
    the client's own call for that, which puts all of the data into an event besides.
    """

    def __init__(self) -> None:
        task, flow = TaskRunContext.get(), FlowRunContext.get()
        self._task_run_id = task.task_run.id if task else None
        self._flow_run_id = task.task_run.flow_run_id if task else flow.flow_run.id if flow and flow.flow_run else None
        self._changed = threading.Condition()
        self._waiting: dict[str, Shown] = {}
        self._ids: dict[str, UUID] = {}
        self._thread: threading.Thread | None = None
        self._is_sending = False

    def show(self, key: str, kind: Kind, data: Any, description: str = "") -> None:
        """Shows this under `key` instead of what stood there; returns at once."""
        with self._changed:
            self._waiting[key] = Shown(kind, data, description)
            if self._thread is None:
                self._thread = threading.Thread(target=self._send_all, name="martlet-ui", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, seconds: float = SECONDS_TO_FLUSH) -> None:
        """Waits until everything is sent, but no longer than this."""
        with self._changed:
            if not self._changed.wait_for(lambda: not (self._waiting or self._is_sending), seconds):
                logger.warning("the Prefect UI does not answer: it will not show %s", ", ".join(self._waiting) or "all")
                self._waiting.clear()

    def _send_all(self) -> None:
        """Sends what comes, until nothing has come for a while."""
        while batch := self._next():
            try:
                with get_client(sync_client=True) as client:
                    while batch:
                        for key, shown in batch.items():
                            self._send(client, key, shown)
                        batch = self._next()
            except Exception as error:
                # Whatever goes wrong between here and a screen must not end a training.
                logger.warning("the Prefect UI could not be told of %s: %s", ", ".join(batch), error)

    def _next(self) -> dict[str, Shown]:
        with self._changed:
            self._is_sending = False
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: bool(self._waiting), SECONDS_IDLE):
                self._thread = None
                return {}
            batch, self._waiting = self._waiting, {}
            self._is_sending = True
            return batch

    def _send(self, client: SyncPrefectClient, key: str, shown: Shown) -> None:
        if key in self._ids:
            body = {"data": shown.data, "description": shown.description}
            client.request("PATCH", "/artifacts/{id}", json=body, path_params={"id": self._ids[key]})
            return
        made = client.create_artifact(
            ArtifactCreate(
                key=key,
                type=shown.kind,
                data=shown.data,
                description=shown.description,
                task_run_id=self._task_run_id,
                flow_run_id=self._flow_run_id,
            )
        )
        self._ids[key] = made.id

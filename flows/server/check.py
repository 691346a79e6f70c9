"""Asks a worker of a queue what it has: `ask(client, "gpu", store)`; the worker's side is the flow `check`.

Whether a worker reaches the store, has this version of the code and sees a GPU can only be said by the worker.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.states import Cancelled

from flows.server.workers import SILENCE_SECONDS, advice
from stages.artifacts.machine import git_commit, machine_facts
from stages.artifacts.store import Store, open_store
from stages.errors import MartletError, UnknownReference

__all__ = ["ask", "check"]

POLL_SECONDS = 0.5
NO_ANSWER_SECONDS = 120.0


@flow(name="check", persist_result=False)
def check(artifact: str = "", gpu: bool = False) -> None:
    """What `martlet setup --check` asks a worker: to read an artifact from the store, and to write down what it has."""
    store = open_store()
    run = cast(FlowRun, cast(FlowRunContext, FlowRunContext.get()).flow_run)
    if artifact:
        store.tree(artifact)
    if gpu:
        import torch  # noqa: F401  # so that machine_facts sees the devices

    facts = {**machine_facts(), "store": store.location}
    store.save_run({"id": str(run.id), "run": str(run.id), "flow": "check", "arguments": {}, "stages": [], **facts})


def ask(client: SyncPrefectClient, queue: str, store: Store) -> Iterator[tuple[bool, str]]:
    """Lets a worker of the queue answer, and compares it with this machine: (whether it is right, one line)."""
    with tempfile.TemporaryDirectory() as folder:
        token = Path(folder) / "check.txt"
        token.write_text(f"{platform.node()} {time.time()}\n")
        artifact = store.take_in(token)
    run = cast(
        FlowRun,
        run_deployment(
            f"check/{queue}",
            parameters={"artifact": artifact.digest, "gpu": queue == "gpu"},
            timeout=0,
            as_subflow=False,
        ),
    )
    done = _wait(client, run.id)
    if done.state is None or not done.state.is_final():
        yield False, advice(client, done, f"check/{queue}")
        client.set_flow_run_state(run.id, Cancelled(message="not started in time"), force=True)
        return
    try:
        facts = store.run(str(run.id))
    except UnknownReference:
        why = (done.state.message or done.state.name or "").strip().splitlines()[0]
        says = f": {why}" if not done.state.is_completed() else " where this machine looks"
        yield False, f"a worker of {queue} could not write into the store {store.location}{says}"
        return
    except MartletError as error:
        yield False, str(error)
        return
    yield from _compare(queue, facts)


def _wait(client: SyncPrefectClient, run_id: Any) -> FlowRun:
    """Until the run has ended, or has not begun for long."""
    began = time.monotonic()
    while True:
        run = client.read_flow_run(run_id)
        waited = time.monotonic() - began
        ended = run.state is not None and run.state.is_final()
        waits = run.state is not None and run.state.is_scheduled() and waited > SILENCE_SECONDS
        if ended or waits or waited > NO_ANSWER_SECONDS:
            return run
        time.sleep(POLL_SECONDS)


def _compare(queue: str, facts: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    image = f", image {facts['image']}" if facts.get("image") else ""
    yield True, f"a worker of {queue} reads and writes the store (on {facts['host']}, as {facts['store']}{image})"
    here = platform.python_version()
    if facts["python"].split(".")[:2] != here.split(".")[:2]:
        yield False, f"a worker of {queue} has Python {facts['python']}, this machine {here}"
    commit = git_commit()
    if facts.get("commit") != commit:
        yield (
            False,
            f"a worker of {queue} has the code of {facts.get('commit')}, this machine {commit}: make its image anew",
        )
    if queue == "gpu":
        names = ", ".join(facts.get("gpus") or ())
        yield bool(names), f"GPU of gpu: {names or 'none is seen by the worker; its stages run on the CPU'}"

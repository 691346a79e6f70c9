"""`martlet setup`: the work pool, its queues and every deployment of prefect.yaml, on the Prefect server in use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ArgumentsError, MissingPackage, StageFailed

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

__all__ = ["main"]

POOL = "martlet"
QUEUES = {"cpu": "stages that need no device", "gpu": "stages that train or load a whole model"}
PROJECT = Path(__file__).resolve().parents[2]

USAGE = """usage: martlet setup

Makes on the Prefect server at PREFECT_API_URL: the work pool `martlet` with its queues cpu and gpu, and the deployments
of prefect.yaml. Safe to repeat. Runs started from it work in the folder that you call it in."""


def main(_command: str, argv: list[str]) -> int:
    """Creates what is missing, updates what is there, and says which."""
    if argv:
        if argv[0] in ("-h", "--help"):
            print(USAGE)
            return 0
        raise ArgumentsError(f"martlet setup takes no {argv[0]}. See martlet setup --help")
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        raise MissingPackage(
            "no Prefect server is in use. Start one (prefect server start) and "
            "set PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    with get_client(sync_client=True) as client:
        _check_reachable(client, str(url))
        before = _deployments(client)
        print(f"work pool {POOL}: {_ensure_pool(client)}")
        for queue in QUEUES:
            print(f"work queue {queue}: {_ensure_queue(client, queue)}")
        _deploy()
        for name in sorted(_deployments(client)):
            print(f"deployment {name}: {'updated' if name in before else 'created'}")
    print(f"\nStart a worker:  prefect worker start --pool {POOL}")
    print("Run a flow:      prefect deployment run sft-then-export/local -p model=… -p dataset='[\"…\"]'")
    return 0


def _check_reachable(client: SyncPrefectClient, url: str) -> None:
    problem = client.api_healthcheck()
    if problem is not None:
        raise StageFailed(f"no Prefect server answers at {url} (PREFECT_API_URL): {problem}")


def _ensure_pool(client: SyncPrefectClient) -> str:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound

    try:
        pool = client.read_work_pool(POOL)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", description="Martlet's stages and flows"))
        return "created"
    return f"there ({pool.type})"


def _ensure_queue(client: SyncPrefectClient, name: str) -> str:
    from prefect.exceptions import ObjectNotFound

    try:
        client.read_work_queue_by_name(name, work_pool_name=POOL)
    except ObjectNotFound:
        client.create_work_queue(name, description=QUEUES[name], work_pool_name=POOL)
        return "created"
    return "there"


def _deployments(client: SyncPrefectClient) -> set[str]:
    """The deployments of this pool as `flow/name`."""
    found: set[str] = set()
    while True:
        page: list[Any] = client.read_deployments(offset=len(found))
        if not page:
            return {name for name in found if name}
        for deployment in page:
            flow = client.read_flow(deployment.flow_id)
            found.add(f"{flow.name}/{deployment.name}")


def _deploy() -> None:
    """Prefect's own command reads prefect.yaml; runs will work in the folder that this was called in."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "prefect.yaml"]
    environment = {**os.environ, "MARTLET_HOME": str(Path.cwd()), "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line.strip(" │╭╰─╮╯") for line in (done.stdout + done.stderr).splitlines()]
        raise StageFailed(f"prefect deploy failed: {' '.join(line for line in lines[-4:] if line)}")

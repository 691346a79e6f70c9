"""What Martlet needs on a Prefect server: the work pool with its queues, and the deployments of prefect.yaml.

ensure_pool(client, "docker", {"image": "registry.example/martlet-core"})
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleUpdate, DeploymentUpdate, WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound

from stages.errors import ArgumentsError, StageFailed
from stages.registry import STAGE_NAMES, get_stage

__all__ = ["POOL", "PROJECT", "QUEUES", "declared", "deploy", "deployments", "ensure_pool", "ensure_queue"]

POOL = "martlet"
QUEUES = {
    "cpu": "stages that need no device, and flows that wait for others",
    "gpu": "stages that train or load a model",
}
PROJECT = Path(__file__).resolve().parents[2]
# Where runs work in a container: the volume that anybody may write.
CONTAINER_HOME = "/scratch"

# One run at a time sees all GPUs of its machine.
GPU_VARIABLES: dict[str, dict[str, Any]] = {
    "process": {},
    "docker": {
        "device_requests": [{"Driver": "nvidia", "Count": -1, "Capabilities": [["gpu"]]}],
        "shm_size": "8g",
    },
    "kubernetes": {"gpus": 1, "shm_size": "8Gi"},
}


def template(kind: str, variables: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The base job template of a pool, with defaults as given, else as the pool has them, else as Martlet has them.

    Raises:
        ArgumentsError: the pool has no such variable.
    """
    loaded: dict[str, Any] = json.loads((PROJECT / "containers" / "pools" / f"{kind}.json").read_text())
    properties = loaded["variables"]["properties"]
    there = (before or {}).get("variables", {}).get("properties", {})
    for name, shape in properties.items():
        if "default" in there.get(name, {}):
            shape["default"] = there[name]["default"]
    for name, value in variables.items():
        if name not in properties:
            raise ArgumentsError(
                f"--variable {name}: a {kind} pool has no such variable. Choose from: {', '.join(properties)}"
            )
        properties[name]["default"] = value
        if value is None and "anyOf" not in properties[name]:
            del properties[name]["default"]
    return loaded


def ensure_pool(client: SyncPrefectClient, kind: str | None, variables: Mapping[str, Any]) -> tuple[str, str]:
    """Makes the pool, or renews its template and keeps the defaults that somebody gave it; its type, and what was done.

    Raises:
        ArgumentsError: it is there with another type, or has no such variable.
    """
    try:
        pool = client.read_work_pool(POOL)
    except ObjectNotFound:
        kind = kind or "process"
        client.create_work_pool(
            WorkPoolCreate(
                name=POOL,
                type=kind,
                description="Martlet's stages and flows",
                base_job_template=template(kind, variables),
            )
        )
        return kind, "created"
    if kind not in (None, pool.type):
        raise ArgumentsError(
            f"the work pool {POOL} is there with workers of type {pool.type}, not {kind}: "
            f"keep that type, or remove it first (prefect work-pool delete {POOL})"
        )
    wanted = template(pool.type, variables, pool.base_job_template)
    if wanted == pool.base_job_template:
        return pool.type, "there"
    client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=wanted))
    return pool.type, "updated"


def ensure_queue(client: SyncPrefectClient, name: str, limit: int | None) -> str:
    """Makes a queue; `limit`, if given, is how many of its runs may run at once."""
    limits = f", {limit} at a time" if limit else ""
    try:
        queue = client.read_work_queue_by_name(name, work_pool_name=POOL)
    except ObjectNotFound:
        client.create_work_queue(name, description=QUEUES[name], concurrency_limit=limit, work_pool_name=POOL)
        return f"created{limits}"
    if limit in (None, queue.concurrency_limit):
        return f"there, {queue.concurrency_limit} at a time" if queue.concurrency_limit else "there"
    client.update_work_queue(queue.id, concurrency_limit=limit)
    return f"updated{limits}"


def declared() -> list[str]:
    """The deployments of prefect.yaml, as `flow/name`."""
    entries = yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]
    return [f"{entry['entrypoint'].rsplit('.', 1)[-1].replace('_', '-')}/{entry['name']}" for entry in entries]


def deployments(client: SyncPrefectClient) -> dict[str, Any]:
    """All deployments on the server, by `flow/name`."""
    found: dict[str, Any] = {}
    flows: dict[Any, str] = {}
    offset = 0
    while page := client.read_deployments(offset=offset):
        offset += len(page)
        for deployment in page:
            if deployment.flow_id not in flows:
                flows[deployment.flow_id] = client.read_flow(deployment.flow_id).name
            found[f"{flows[deployment.flow_id]}/{deployment.name}"] = deployment
    return found


def deploy(client: SyncPrefectClient, kind: str, gpus: int | None) -> Iterator[str]:
    """Makes or renews every deployment of prefect.yaml, and says which.

    Args:
        client: of the server.
        kind: the type of the pool's workers.
        gpus: how many there are; with one or more, containers of the queue gpu are given them, with 0 none.

    Raises:
        StageFailed: what Prefect says.
    """
    before = deployments(client)
    home = str(Path.cwd()) if kind == "process" else CONTAINER_HOME
    _prefect_deploy(home)
    after = deployments(client)
    needing = {f"{name.replace('_', '-')}/gpu" for name in STAGE_NAMES if get_stage(name).need == "gpu"} | {"check/gpu"}
    for name in declared():
        variables = GPU_VARIABLES[kind] if gpus else {}
        changes = _kept(before[name], after[name]) if name in before else {}
        if name in needing and gpus is not None:
            changes["job_variables"] = variables
        if changes:
            client.update_deployment(after[name].id, DeploymentUpdate(**changes))
        yield f"deployment {name}: {'updated' if name in before else 'created'}"


def _kept(before: Any, after: Any) -> dict[str, Any]:
    """What somebody has set on a deployment, which `prefect deploy` puts back: parameters, schedules, variables."""
    kept: dict[str, Any] = {}
    parameters = {**after.parameters, **before.parameters}
    if parameters != after.parameters:
        kept["parameters"] = parameters
    if before.job_variables != after.job_variables:
        kept["job_variables"] = before.job_variables
    now = [(each.schedule, each.active) for each in after.schedules]
    if before.schedules and [(each.schedule, each.active) for each in before.schedules] != now:
        kept["schedules"] = [
            DeploymentScheduleUpdate(schedule=each.schedule, active=each.active, parameters=each.parameters)
            for each in before.schedules
        ]
    return kept


def _prefect_deploy(home: str) -> None:
    """Prefect's own command reads prefect.yaml."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "prefect.yaml"]
    environment = {**os.environ, "MARTLET_HOME": home, "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line.strip(" │╭╰─╮╯") for line in (done.stdout + done.stderr).splitlines()]
        raise StageFailed(f"prefect deploy failed: {' '.join(line for line in lines[-4:] if line)}")

"""The work pools' templates: complete, and what workers make of them is valid, strictly."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.environments import interpreter
from stages.errors import MissingPackage
from stages.registry import STAGE_NAMES

POOLS = Path(__file__).resolve().parents[2] / "containers" / "pools"
KINDS = ["process", "docker", "kubernetes"]
GPU_NODES = {
    "gpus": 1,
    "node_selector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "memory_request": "64Gi",
    "cpu_request": "8",
}
ON_S3 = {"store": "s3://bucket/prefix", "store_volume": {"name": "store", "emptyDir": {"sizeLimit": "200Gi"}}}
# What a worker may have set for itself; none of it makes sense inside a container.
LEAKS = {
    "MARTLET_STORE": "/home/someone/store",
    "PREFECT_HOME": "/home/someone/.prefect",
    "PREFECT_PROFILES_PATH": "/home/someone/.prefect/profiles.toml",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://prefect:secret@database/prefect",
}

Render = Callable[[str, list[dict[str, Any]]], list[dict[str, Any]]]


def template(kind: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((POOLS / f"{kind}.json").read_text())
    return loaded


@pytest.fixture(scope="session")
def render() -> Render:
    """What a worker of the kind makes of its template with these job variables."""
    try:
        python = interpreter("worker")
    except MissingPackage as missing:
        pytest.skip(str(missing))

    def rendered(kind: str, variables: list[dict[str, Any]]) -> list[dict[str, Any]]:
        script = Path(__file__).with_name("render.py")
        command = [str(python), str(script), kind, str(POOLS / f"{kind}.json"), json.dumps(variables)]
        environment = {**os.environ, **LEAKS, "PREFECT_API_URL": "http://127.0.0.1:4200/api"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        jobs: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
        return jobs

    return rendered


@pytest.mark.parametrize("kind", KINDS)
def test_every_placeholder_is_a_variable_and_every_variable_is_used(kind: str) -> None:
    loaded = template(kind)
    placeholders = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(loaded["job_configuration"])))
    variables = loaded["variables"]["properties"]
    assert placeholders | {"env"} == set(variables)
    for name, variable in variables.items():
        assert variable["title"], name
        assert variable["description"].endswith((".", "…)")), name
        assert len(variable["description"]) < 130, name


@pytest.mark.parametrize("kind", KINDS)
def test_all_pools_call_the_common_things_the_same(kind: str) -> None:
    variables = set(template(kind)["variables"]["properties"])
    assert {"store", "env", "stream_output", "command", "name", "labels"} <= variables
    if kind != "process":
        assert {"image", "image_pull_policy", "shm_size"} <= variables


@pytest.mark.environment
def test_a_process_takes_its_workers_store_unless_told_otherwise(render: Render) -> None:
    own, told = render("process", [{}, {"store": "s3://bucket/prefix"}])
    assert own["env"]["MARTLET_STORE"] == LEAKS["MARTLET_STORE"]
    assert told["env"]["MARTLET_STORE"] == "s3://bucket/prefix"


@pytest.mark.environment
def test_a_container_has_no_more_than_it_needs(render: Render) -> None:
    gpus = [{"Driver": "nvidia", "Count": -1, "Capabilities": [["gpu"]]}]
    plain, gpu = render("docker", [{}, {"device_requests": gpus, "shm_size": "16g", "mem_limit": "64g", "user": "7:7"}])
    create = plain["container_create_kwargs"]
    assert "device_requests" not in create
    assert "user" not in create
    assert create["read_only"] is True
    assert create["init"] is True
    assert create["cap_drop"] == ["ALL"]
    assert create["security_opt"] == ["no-new-privileges"]
    assert create["tmpfs"] == {"/tmp": "mode=1777"}
    assert plain["volumes"] == ["martlet-store:/store", "martlet-scratch:/scratch"]
    assert gpu["container_create_kwargs"]["device_requests"] == gpus
    assert (gpu["container_create_kwargs"]["shm_size"], gpu["mem_limit"]) == ("16g", "64g")
    assert gpu["container_create_kwargs"]["user"] == "7:7"


@pytest.mark.environment
@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_nothing_of_the_workers_own_settings_gets_in(kind: str, render: Render) -> None:
    plain, told = render(kind, [{}, {"env": {"HF_HUB_OFFLINE": "1"}, "store": "s3://bucket/prefix"}])
    assert plain["env"]["PREFECT_HOME"] == "/tmp/prefect"
    assert plain["env"]["MARTLET_STORE"] == "/store"
    assert plain["env"]["MARTLET_IMAGE"] == "martlet-core"
    assert told["env"]["HF_HUB_OFFLINE"] == "1"
    assert told["env"]["MARTLET_STORE"] == "s3://bucket/prefix"
    assert "secret" not in json.dumps(plain["env"])
    assert "/home/someone" not in json.dumps(plain["env"])


@pytest.mark.environment
def test_every_stage_makes_a_valid_job(render: Render) -> None:
    """Strictly, by the schema of the newest Kubernetes known here and of one that is a year older."""
    import kubernetes_validate

    places: list[dict[str, Any]] = [{}, GPU_NODES, ON_S3, {**GPU_NODES, **ON_S3, "image_pull_secrets": [{"name": "r"}]}]
    variables = [{**place, "name": stage} for stage in STAGE_NAMES for place in places]
    jobs = render("kubernetes", variables)
    assert len(jobs) == 4 * len(STAGE_NAMES)
    for job in jobs:
        manifest = job["job_manifest"]
        pod = manifest["spec"]["template"]["spec"]
        # prefect-kubernetes 0.8.0 refuses a template without these two, which belong into the job and are there.
        assert (pod.pop("completions"), pod.pop("parallelism")) == (1, 1)
        assert (manifest["spec"]["completions"], manifest["spec"]["parallelism"]) == (1, 1)
        for version in ("1.33", kubernetes_validate.latest_version()):
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.environment
def test_a_job_is_put_where_it_is_told_and_has_no_rights(render: Render) -> None:
    plain, gpu, s3 = (job["job_manifest"]["spec"] for job in render("kubernetes", [{}, GPU_NODES, ON_S3]))
    pod, container = plain["template"]["spec"], plain["template"]["spec"]["containers"][0]
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert container["resources"] == {"limits": {}, "requests": {}}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert "nodeSelector" not in pod
    assert {m["mountPath"] for m in container["volumeMounts"]} == {"/store", "/scratch", "/tmp", "/dev/shm"}
    assert {m["name"] for m in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert pod["volumes"][0] == {"name": "store", "persistentVolumeClaim": {"claimName": "martlet-store"}}
    # With backoffLimit 0 an evicted run goes back to its queue, and its next pod resumes from the checkpoint.
    assert plain["backoffLimit"] == 0
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"

    there = gpu["template"]["spec"]
    assert there["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert there["nodeSelector"] == GPU_NODES["node_selector"]
    assert there["tolerations"] == GPU_NODES["tolerations"]
    assert s3["template"]["spec"]["volumes"][0] == ON_S3["store_volume"]

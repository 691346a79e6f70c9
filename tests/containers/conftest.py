"""A Docker daemon, the project's images on a base that needs no registry, and a Prefect server by HTTP."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.flows.conftest import wait_until

PROJECT = Path(__file__).resolve().parents[2]
CONTAINERS = PROJECT / "containers"
STAND_IN = "martlet-stand-in:bookworm"


@dataclass(frozen=True)
class Docker:
    """A client of a daemon that answers."""

    client: str

    def __call__(self, *words: str, exit_code: int = 0) -> str:
        """Runs a command, checks its exit code, gives what it printed."""
        done = self.run(*words)
        assert done.returncode == exit_code, done.stdout + done.stderr
        return done.stdout.strip()

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a command that may fail."""
        return subprocess.run([self.client, *words], capture_output=True, text=True, timeout=300, check=False)

    def stage(self, image: str, *options: str, words: list[str]) -> subprocess.CompletedProcess[str]:
        """`python -m stages WORDS` in a container of which only the volumes and /tmp can be written."""
        return self.run(
            "run", "--rm", "--read-only", "--tmpfs", "/tmp", *options, image, "python", "-m", "stages", *words
        )


@pytest.fixture(scope="session")
def docker() -> Docker:
    # Debian's client has BuildKit built in; another one that stands before it on the path may lack it.
    client = "/usr/bin/docker" if Path("/usr/bin/docker").exists() else shutil.which("docker")
    if client is None:
        pytest.skip("needs Docker: apt-get install docker.io, then dockerd")
    try:
        done = subprocess.run([client, "info"], capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("needs a Docker daemon: none answered within 20 s")
    if done.returncode != 0:
        pytest.skip(f"needs a Docker daemon, start dockerd: {done.stderr.strip()[:120]}")
    return Docker(client)


@pytest.fixture(scope="session")
def base_image(docker: Docker) -> str:
    """BASE_IMAGE, or a stand-in for python:3.11-slim made of Debian's packages; kept for the next time."""
    given = os.environ.get("BASE_IMAGE")
    if given:
        return given
    if shutil.which("mmdebstrap") is None and docker.run("image", "inspect", STAND_IN).returncode != 0:
        pytest.skip("needs mmdebstrap to make a base image (apt-get install mmdebstrap), or BASE_IMAGE")
    script(docker, "stand_in_base.sh", STAND_IN)
    return STAND_IN


def script(docker: Docker, name: str, *words: str, **environment: str) -> None:
    done = subprocess.run(
        [str(CONTAINERS / name), *words],
        env={**os.environ, "DOCKER": docker.client, **environment},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def built(docker: Docker, base_image: str, environment: str) -> str:
    image = f"martlet-test-{environment}"
    script(docker, "build.sh", environment, BASE_IMAGE=base_image, IMAGE=image)
    return image


@pytest.fixture(scope="session")
def core_image(docker: Docker, base_image: str) -> str:
    return built(docker, base_image, "core")


@pytest.fixture(scope="session")
def evaluate_image(docker: Docker, base_image: str) -> str:
    return built(docker, base_image, "evaluate")


@pytest.fixture(scope="session")
def worker_image(docker: Docker, base_image: str) -> str:
    return built(docker, base_image, "worker")


@pytest.fixture(scope="session")
def as_me() -> str:
    """UID:GID of who runs the tests: a container with it can read and write the tests' own folders."""
    return f"{os.getuid()}:{os.getgid()}"


@dataclass
class Server:
    """A Prefect server by its HTTP interface."""

    url: str

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Creates something and gives the answer."""
        answer = httpx.post(f"{self.url}/{path}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def make_pool(self, name: str) -> None:
        """A work pool of containers/pools/docker.json with the queues cpu and gpu."""
        template = json.loads((CONTAINERS / "pools" / "docker.json").read_text())
        self.post("work_pools/", {"name": name, "type": "docker", "base_job_template": template})
        for queue in ("cpu", "gpu"):
            self.post(f"work_pools/{name}/queues", {"name": queue})

    def deploy(self, pool: str, queue: str, stage: str, variables: dict[str, Any]) -> str:
        """A stage on a queue; gives the deployment's id."""
        flow = self.post("flows/", {"name": stage})
        body = {"name": queue, "flow_id": flow["id"], "entrypoint": f"flows.deployments.{stage}", "path": None}
        place = {"work_pool_name": pool, "work_queue_name": queue, "job_variables": variables}
        return str(self.post("deployments/", {**body, **place})["id"])

    def start(self, deployment: str, **parameters: Any) -> str:
        """Starts a run and gives its id."""
        return str(self.post(f"deployments/{deployment}/create_flow_run", {"parameters": parameters})["id"])

    def run(self, flow_run: str) -> dict[str, Any]:
        """What the server knows of a run."""
        answer: dict[str, Any] = httpx.get(f"{self.url}/flow_runs/{flow_run}", timeout=30).json()
        return answer

    def wait(self, flow_run: str, *types: str, seconds: float = 120) -> dict[str, Any]:
        """Waits until a run is in one of these states, by default in a final one."""
        wanted = types or ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        wait_until(lambda: self.run(flow_run)["state_type"] in wanted, seconds)
        return self.run(flow_run)

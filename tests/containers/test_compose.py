"""compose.yaml: valid, and started for real with Postgres, server, and a docker worker on each queue."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.containers.conftest import CONTAINERS, Docker, Server
from tests.flows.conftest import free_port

HERE = Path(__file__).parent
PROJECT_NAME = "martlet-test"


@dataclass(frozen=True)
class Compose:
    """`docker compose` or `docker-compose`, whichever is here, on compose.yaml and what a test lays over it."""

    command: list[str]
    over: Path | None = None
    environment: tuple[tuple[str, str], ...] = ()

    def __call__(self, *words: str) -> str:
        """Runs a command to its end and gives what it printed."""
        files = [CONTAINERS / "compose.yaml", *([self.over] if self.over else [])]
        named = [word for file in files for word in ("--file", str(file))]
        done = subprocess.run(
            [*self.command, "--project-name", PROJECT_NAME, *named, *words],
            env={**os.environ, **dict(self.environment)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def compose_command() -> list[str]:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, "version"], capture_output=True, timeout=30, check=False)
            if done.returncode == 0:
                return command
    pytest.skip("needs docker compose: apt-get install docker-compose")


def test_it_is_valid_and_keeps_to_itself() -> None:
    described = yaml.safe_load(Compose(compose_command())("config"))
    services = described["services"]
    assert set(services) == {"database", "server", "setup", "evaluate", "worker-cpu", "worker-gpu"}
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert len(published) == 1
    assert "127.0.0.1" in str(published[0])
    for name in ("worker-cpu", "worker-gpu", "server", "setup"):
        assert services[name]["read_only"] is True
    for name in ("cpu", "gpu"):
        command = services[f"worker-{name}"]["command"]
        assert command[command.index("--work-queue") + 1] == name
    built = {service["build"]["args"]["ENVIRONMENT"] for service in services.values() if "build" in service}
    assert built == {"core", "evaluate", "worker"}


@pytest.fixture
def running(
    docker: Docker, base_image: str, core_image: str, worker_image: str, tiny_model: Path, tmp_path: Path
) -> Iterator[tuple[Compose, Server]]:
    """compose.yaml on the images under test, under names of its own, with a stand-in for Postgres."""
    postgres = "martlet-test-postgres"
    words = ["build", "--quiet", "--tag", postgres, "--build-arg", f"BASE_IMAGE={base_image}", str(HERE / "postgres")]
    docker(*words)
    store, network, port = f"{PROJECT_NAME}-store", PROJECT_NAME, free_port()
    defaults = {
        "image": core_image,
        "image_pull_policy": "Never",
        "networks": [network],
        "volumes": [f"{store}:/store", f"{tiny_model}:/given:ro"],
        "user": "0:0",
    }
    over: dict[str, Any] = {
        "services": {
            "evaluate": {"image": core_image},
            "setup": {
                "image": core_image,
                "command": ["python", "/set_up.py", json.dumps(defaults)],
                "volumes": [f"{HERE / 'set_up.py'}:/set_up.py:ro"],
                "user": "0:0",
            },
            **{name: {"image": worker_image} for name in ("server", "worker-cpu", "worker-gpu")},
        },
        "networks": {"martlet": {"name": network}},
        "volumes": {"store": {"name": store}},
    }
    path = tmp_path / "over.json"
    path.write_text(json.dumps(over))
    environment = (("POSTGRES_IMAGE", postgres), ("PREFECT_PORT", str(port)))
    compose = Compose(compose_command(), path, environment)
    try:
        try:
            compose("up", "--detach", "--no-build")
        except AssertionError:
            print(compose("logs", "--no-color")[-5000:])
            raise
        yield compose, Server(f"http://127.0.0.1:{port}/api")
    finally:
        compose("down", "--volumes", "--timeout", "10")


@pytest.mark.docker
@pytest.mark.slow
def test_artifacts_pass_between_containers_of_two_workers(running: tuple[Compose, Server]) -> None:
    compose, server = running

    def deployment(name: str) -> str:
        answer = httpx.get(f"{server.url}/deployments/name/{name}", timeout=30)
        answer.raise_for_status()
        return str(answer.json()["id"])

    model = server.wait(server.start(deployment("download/cpu"), model="/given"))
    assert model["state_name"] == "Completed", model["state"]
    digest = compose("run", "--rm", "--no-deps", "setup", "martlet", "artifacts", "list", "--json")
    models = [each["digest"] for each in json.loads(digest) if each["kind"] == "model"]
    quantized = server.wait(server.start(deployment("quantize/gpu"), model=models[0], quant_method="bnb", quant_bits=4))
    assert quantized["state_name"] == "Completed", quantized["state"]
    rows = compose(
        "exec", "-T", "database", "psql", "--username", "prefect", "--tuples-only",
        "--command", "select count(*) from flow_run where state_type = 'COMPLETED'",
    )  # fmt: skip
    assert rows.strip() == "2"
    page = httpx.get(server.url.removesuffix("/api") + "/", timeout=30, follow_redirects=True)
    assert page.status_code == 200
    assert httpx.get(server.url.removesuffix("/api") + "/ui-settings", timeout=30).json()["api_url"] == "/api"

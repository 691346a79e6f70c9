"""A Docker daemon, the project's images on a base that needs no registry, and a Prefect server by HTTP."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.conftest import alpaca_rows
from tests.flows.conftest import free_port, wait_until

PROJECT = Path(__file__).resolve().parents[2]
CONTAINERS = PROJECT / "containers"
HERE = Path(__file__).parent
STAND_IN = "martlet-stand-in:bookworm"
STACK = "martlet-test"


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
    script(docker, CONTAINERS / "stand_in_base.sh", STAND_IN)
    return STAND_IN


def script(docker: Docker, path: Path, *words: str, **environment: str) -> None:
    done = subprocess.run(
        [str(path), *words],
        env={**os.environ, "DOCKER": docker.client, **environment},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def built(docker: Docker, base_image: str, environment: str, project: Path = PROJECT, image: str = "") -> str:
    """Builds an image, by default under the name that tests have for it, and gives its name."""
    image = image or f"martlet-test-{environment}"
    script(docker, project / "containers" / "build.sh", environment, BASE_IMAGE=base_image, IMAGE=image)
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
            [*self.command, "--project-name", STACK, *named, *words],
            env={**os.environ, **dict(self.environment)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def compose_command() -> list[str]:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, "version"], capture_output=True, timeout=30, check=False)
            if done.returncode == 0:
                return command
    pytest.skip("needs docker compose: apt-get install docker-compose")


@dataclass(frozen=True)
class Stack:
    """compose.yaml as it runs: what a test asks it by HTTP, by compose and from the host's shell."""

    compose: Compose
    docker: Docker
    url: str
    given: Path

    @property
    def environment(self) -> dict[str, str]:
        """For commands on the host."""
        return {**os.environ, "PREFECT_API_URL": self.url, "PREFECT_HOME": str(self.given.parent / "prefect")}

    def get(self, path: str) -> Any:
        answer = httpx.get(f"{self.url}/{path}", timeout=30)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        answer = httpx.post(f"{self.url}/{path}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()

    @property
    def volumes(self) -> list[str]:
        """What a stage's container sees unless a test says otherwise."""
        return volumes(self.given)

    def set_up(self, **variables: Any) -> str:
        """`martlet setup` from the host, with other defaults of the pool."""
        words = [word for name, value in variables.items() for word in ("--variable", f"{name}={json.dumps(value)}")]
        return self.host("-m", "flows.cli", "setup", *words).stdout

    def host(self, *words: str, exit_code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """`python WORDS` on the host, with this Prefect server."""
        done = subprocess.run(
            [sys.executable, *words], env={**self.environment, **environment}, cwd=self.given.parent,
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == exit_code, done.stdout + done.stderr
        return done

    def start(self, name: str, variables: dict[str, Any] | None = None, **parameters: Any) -> str:
        """Starts a deployment and gives the run's id."""
        deployment = self.get(f"deployments/name/{name}")["id"]
        body = {"parameters": parameters, "job_variables": variables or {}}
        return str(self.post(f"deployments/{deployment}/create_flow_run", body)["id"])

    def wait(self, run: str, seconds: float = 240) -> dict[str, Any]:
        """Waits until a run has ended, and gives what the server knows of it."""
        final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        wait_until(lambda: self.get(f"flow_runs/{run}")["state_type"] in final, seconds)
        found: dict[str, Any] = self.get(f"flow_runs/{run}")
        return found

    def children(self, run: str) -> list[tuple[str, str]]:
        """The runs that a flow has started on workers, as (deployment, state), in order."""
        names = {each["id"]: each["name"] for each in self.post("flows/filter", {})}
        body = {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}, "sort": "START_TIME_ASC"}
        return [(names[each["flow_id"]], each["state_name"]) for each in self.post("flow_runs/filter", body)]

    def child(self, run: str, stage: str) -> str:
        """The run of a stage that a flow waits for at this moment."""
        flow = next(each["id"] for each in self.post("flows/filter", {}) if each["name"] == stage)
        body = {"flow_runs": {"parent_flow_run_id": {"any_": [run]}, "state": {"type": {"any_": ["RUNNING"]}}}}
        found = [each["id"] for each in self.post("flow_runs/filter", body) if each["flow_id"] == flow]
        return str(found[0]) if found else ""

    def tasks(self, run: str) -> dict[str, str]:
        """The states of the stages of a run, by name, as far as the server knows; some come a little later."""
        found = self.post("task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
        own = [each for each in found if "run_deployment" not in each["task_key"]]
        return {each["name"].partition(" · ")[0]: each["state_name"] for each in own}

    def container(self, run: str) -> str:
        """The container in which a flow run runs."""
        return self.docker("ps", "--quiet", "--filter", f"label=io.prefect.flow-run-id={run}")

    def logs(self, run: str) -> str:
        """What a run has logged."""
        found = self.post("logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"})
        return "\n".join(each["message"] for each in found)

    def martlet(self, *words: str) -> Any:
        """`martlet … --json` in a container on the stack's store."""
        out = self.compose("run", "--rm", "--no-deps", "-T", "setup", "martlet", *words, "--json")
        return json.loads(out.splitlines()[-1])


def volumes(given: Path) -> list[str]:
    return [f"{STACK}-store:/store", f"{STACK}-scratch:/scratch", f"{given}:/given:ro"]


def sweep(docker: Docker) -> None:
    """Removes what a run of the tests that was killed has left: its containers, networks and volumes."""
    of_the_stack = f"label=com.docker.compose.project={STACK}"
    for container in docker("ps", "--all", "--quiet", "--filter", of_the_stack).split():
        docker.run("rm", "--force", "--volumes", container)
    for kind, named in (("network", f"name=^{STACK}"), ("volume", f"name=^{STACK}[-_]")):
        for left in docker(kind, "ls", "--quiet", "--filter", named).split():
            docker.run(kind, "rm", left)


@pytest.fixture(scope="session")
def stack(
    docker: Docker, base_image: str, core_image: str, worker_image: str, compose_command: list[str], tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:  # fmt: skip
    """compose.yaml on the images under test, under names of its own, with a stand-in for Postgres.

    /given of every container holds a model and rows; each can be read by everybody, for stages run without rights.
    """
    postgres = "martlet-test-postgres"
    words = ["build", "--quiet", "--tag", postgres, "--build-arg", f"BASE_IMAGE={base_image}", str(HERE / "postgres")]
    docker(*words)
    given = tmp_path_factory.mktemp("stack") / "given"
    shutil.copytree(tiny_model, given / "tiny-llama")
    (given / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in alpaca_rows(40)))
    for path in (given, *given.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    defaults = {
        "image": core_image,
        "image_pull_policy": "Never",
        "networks": [STACK],
        "volumes": volumes(given),
    }
    as_written = yaml.safe_load((CONTAINERS / "compose.yaml").read_text())["services"]["setup"]["command"]
    variables = [word for name, value in defaults.items() for word in ("--variable", f"{name}={json.dumps(value)}")]
    over: dict[str, Any] = {
        "services": {
            "evaluate": {"image": core_image},
            "setup": {"image": core_image, "command": [*as_written, *variables]},
            **{name: {"image": worker_image} for name in ("server", "worker-cpu", "worker-gpu")},
        },
        "networks": {"martlet": {"name": STACK}},
        "volumes": {"store": {"name": f"{STACK}-store"}},
    }
    path = given.with_name("over.json")
    path.write_text(json.dumps(over))
    port = free_port()
    compose = Compose(compose_command, path, (("POSTGRES_IMAGE", postgres), ("PREFECT_PORT", str(port))))
    sweep(docker)
    try:
        try:
            compose("up", "--detach", "--no-build")
        except AssertionError:
            print(compose("logs", "--no-color")[-5000:])
            raise
        yield Stack(compose, docker, f"http://127.0.0.1:{port}/api", given)
    finally:
        # Stages that still run, of a test that has failed, would keep the network and the volumes.
        for container in docker("ps", "--quiet", "--filter", "label=io.prefect.work-pool-name=martlet").split():
            if STACK in docker.run("inspect", "--format", "{{json .NetworkSettings.Networks}}", container).stdout:
                docker.run("rm", "--force", "--volumes", container)
        compose("down", "--volumes", "--timeout", "10")
        docker.run("volume", "rm", f"{STACK}-scratch")

"""A Prefect docker worker for real: stages of a deployment in containers, killed, stopped and cancelled."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.arguments import DownloadArguments, PreprocessArguments, TokenizeArguments
from stages.artifacts.store import open_store
from stages.environments import interpreter
from stages.errors import MissingPackage
from stages.registry import get_stage
from stages.run import run_stage
from tests.containers.conftest import Docker, Server
from tests.flows.conftest import prefect_environment, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.server, pytest.mark.environment, pytest.mark.slow]

POOL = "containers"
__all__ = ["prefect_environment"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the host; the containers have it as /store."""
    return tmp_path_factory.mktemp("host-store")


@pytest.fixture(scope="module")
def server(docker: Docker, prefect_environment: dict[str, str], core_image: str, store: Path) -> Iterator[Server]:
    """A server, and one docker worker for both queues."""
    try:
        python = interpreter("worker")
    except MissingPackage as missing:
        pytest.skip(str(missing))
    server = Server(prefect_environment["PREFECT_API_URL"])
    server.make_pool(POOL)
    log = (store.parent / "worker.log").open("w")
    queues = ["--work-queue", "cpu", "--work-queue", "gpu"]
    command = [str(python), "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "docker", *queues]
    worker = subprocess.Popen(command, env=prefect_environment, stdout=log, stderr=subprocess.STDOUT, cwd=store.parent)
    try:
        yield server
    finally:
        # A worker that is told to end waits for its containers; there are some only where a test has failed.
        for container in docker("ps", "--quiet", "--filter", f"label=io.prefect.work-pool-name={POOL}").split():
            docker.run("rm", "--force", "--volumes", container)
        worker.terminate()
        worker.wait(60)
        log.close()


@pytest.fixture(scope="module")
def variables(core_image: str, store: Path, as_me: str) -> dict[str, Any]:
    """Job variables: the image under test, the host's folder as the store, which the tests' own user can write."""
    return {"image": core_image, "image_pull_policy": "Never", "volumes": [f"{store}:/store"], "user": as_me}


@pytest.fixture
def inputs(store: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, alpaca_file: Path) -> dict[str, str]:
    """Digests of a model and of tokens, made on the host."""
    monkeypatch.setenv("MARTLET_STORE", str(store))
    model = run_stage(get_stage("download"), DownloadArguments(model=str(tiny_model)), {}, store=open_store()).artifact
    given = PreprocessArguments(dataset=[str(alpaca_file)])
    rows = run_stage(get_stage("preprocess"), given, {}, store=open_store()).artifact
    sources = {"dataset": rows, "model": model}
    tokens = run_stage(get_stage("tokenize"), TokenizeArguments(), sources, store=open_store()).artifact
    return {"model": model.digest, "tokens": tokens.digest}


def container_of(docker: Docker, flow_run: str) -> str:
    """The container in which a flow run runs."""
    return docker("ps", "--quiet", "--filter", f"label=io.prefect.flow-run-id={flow_run}")


def checkpoints(store: Path) -> int:
    """How many whole checkpoints interrupted runs have left."""
    return len(list((store / "scratch").glob("*/work/checkpoint-*/trainer_state.json")))


def task_state(server: Server, flow_run: str) -> str:
    """The name of the state in which the stage's newest task ended: Completed, Cached, Resumed."""
    found = server.post(
        "task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run]}}, "sort": "EXPECTED_START_TIME_DESC"}
    )
    return str(found[0]["state_name"])


def test_a_stage_runs_in_a_container_and_its_artifact_is_in_the_hosts_store(
    server: Server, variables: dict[str, Any], store: Path, inputs: dict[str, str], core_image: str
) -> None:
    train = server.deploy(POOL, "gpu", "train", variables)
    done = server.wait(server.start(train, **inputs, max_steps=3))
    assert done["state_name"] == "Completed", done["state"]
    assert task_state(server, done["id"]) == "Completed"
    opened = open_store(str(store))
    adapters = [reference for reference in opened.artifacts() if reference.kind == "adapter"]
    assert len(adapters) == 1
    assert opened.is_whole(adapters[0])
    machine = opened.manifests(adapters[0])[0].machine
    assert machine["image"] == core_image
    assert machine["commit"]

    merge = server.deploy(POOL, "cpu", "merge", variables)
    merged = server.wait(server.start(merge, model=inputs["model"], adapter=adapters[0].digest))
    assert merged["state_name"] == "Completed", merged["state"]
    again = server.wait(server.start(merge, model=inputs["model"], adapter=adapters[0].digest))
    assert task_state(server, again["id"]) == "Cached"


def test_after_a_killed_container_the_next_one_resumes(
    docker: Docker, server: Server, variables: dict[str, Any], store: Path, inputs: dict[str, str]
) -> None:
    train = server.deploy(POOL, "gpu", "train", variables)
    parameters = {**inputs, "max_steps": 300, "save_steps": 20, "learning_rate": 3e-4}
    first = server.start(train, **parameters)
    wait_until(lambda: checkpoints(store) >= 2, 90)
    docker("kill", container_of(docker, first))
    assert server.wait(first, seconds=30)["state_name"] == "Crashed"
    second = server.wait(server.start(train, **parameters))
    assert second["state_name"] == "Completed", second["state"]
    assert task_state(server, second["id"]) == "Resumed"
    assert checkpoints(store) == 0


def test_a_stopped_container_gives_its_run_back_to_the_queue(
    docker: Docker, server: Server, variables: dict[str, Any], store: Path, inputs: dict[str, str]
) -> None:
    """As when its machine shuts down: SIGTERM, and the same run goes on in another container."""
    train = server.deploy(POOL, "gpu", "train", variables)
    run = server.start(train, **inputs, max_steps=300, save_steps=20, learning_rate=4e-4)
    wait_until(lambda: checkpoints(store) >= 2, 90)
    docker("stop", "--time", "30", container_of(docker, run))
    done = server.wait(run)
    assert done["state_name"] == "Completed", done["state"]
    assert task_state(server, run) == "Resumed"


def test_cancelling_reaches_the_container_which_saves_and_is_gone(
    docker: Docker, server: Server, variables: dict[str, Any], store: Path, inputs: dict[str, str]
) -> None:
    train = server.deploy(POOL, "gpu", "train", variables)
    run = server.start(train, **inputs, max_steps=30000, save_steps=100, learning_rate=5e-4)
    wait_until(lambda: checkpoints(store) >= 1, 90)
    server.post(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    assert server.wait(run, seconds=60)["state_name"] == "Cancelled"
    wait_until(lambda: not container_of(docker, run), 30)
    saved = {int(path.name.split("-")[1]) for path in (store / "scratch").glob("*/work/checkpoint-*")}
    assert any(step % 100 for step in saved), saved

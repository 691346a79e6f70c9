"""A flow whose stages run on workers: a real server, a real worker with processes, a tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import alpaca_rows
from tests.flows.conftest import Martlet, api, get, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.server]

COMMON = {
    "dataset": ["rows.jsonl"],
    "split_dataset_ratio": 0,
    "lora_rank": 4,
    "logging_steps": 50,
    "per_device_train_batch_size": 2,
    "max_length": 128,
}
LONG = {"max_steps": 3000, "save_steps": 97}
"""A run that is stopped hardly ever stops where it would have saved anyway."""
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Server:
    """What the tests ask of the Prefect server."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def start(self, name: str, **parameters: Any) -> str:
        """Starts a deployment and gives the run's id."""
        deployment = get(self.environment, f"deployments/name/{name}")["id"]
        run = api(self.environment, f"deployments/{deployment}/create_flow_run", {"parameters": parameters})
        return str(run["id"])

    def run(self, run: str) -> dict[str, Any]:
        return dict(get(self.environment, f"flow_runs/{run}"))

    def wait(self, run: str, *types: str, seconds: float = 120) -> dict[str, Any]:
        wait_until(lambda: self.run(run)["state_type"] in (types or FINAL), seconds)
        return self.run(run)

    def set(self, run: str, type_: str, name: str) -> None:
        api(self.environment, f"flow_runs/{run}/set_state", {"state": {"type": type_, "name": name}})

    def children(self, run: str) -> list[dict[str, Any]]:
        """The runs that a flow has started on workers, in order."""
        body = {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}, "sort": "START_TIME_ASC"}
        return list(api(self.environment, "flow_runs/filter", body))

    def tasks(self, run: str, count: int) -> dict[str, str]:
        """State names of the stages of a flow, by the task's name; tasks that stand for a child are left out.

        The server learns of tasks from events, a little later than of the flow.
        """
        with suppress(AssertionError):
            wait_until(
                lambda: len(self._tasks(run)) >= count and not {"Running", "Pending"} & set(self._tasks(run).values()),
                30,
            )
        return self._tasks(run)

    def _tasks(self, run: str) -> dict[str, str]:
        body = {"flow_runs": {"id": {"any_": [run]}}, "sort": "EXPECTED_START_TIME_ASC"}
        found = api(self.environment, "task_runs/filter", body)
        return {
            task["name"].split(" · ")[0]: task["state_name"]
            for task in found
            if "run_deployment" not in task["task_key"]
        }


@pytest.fixture(scope="module")
def martlet(tmp_path_factory: pytest.TempPathFactory, prefect_environment: dict[str, str], tiny_model: Path) -> Martlet:
    folder = tmp_path_factory.mktemp("user")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in alpaca_rows(40)))
    (folder / "tiny").symlink_to(tiny_model)
    return Martlet({**prefect_environment, "MARTLET_STORE": str(folder / "store")}, folder)


@pytest.fixture(scope="module")
def server(martlet: Martlet) -> Iterator[Server]:
    """Set up, with one worker on both queues."""
    martlet("setup", "--gpus", "1")
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "martlet"]
    with (martlet.folder / "worker.log").open("w") as log:
        worker = subprocess.Popen(
            command, env=martlet.environment, cwd=martlet.folder, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield Server(martlet.environment)
        finally:
            worker.terminate()
            worker.wait(60)


@pytest.fixture(scope="module")
def first(server: Server) -> str:
    """A whole run on workers."""
    run = server.start("sft-then-export/workers", model="tiny", **COMMON, max_steps=4)
    done = server.wait(run, seconds=240)
    assert done["state_name"] == "Completed", done["state"]
    return run


def processes_of(flow_run: str) -> list[int]:
    """The processes that run a flow run: the one that Prefect's worker has started for it."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                environment = (folder / "environ").read_bytes()
            except OSError:
                continue
            if f"PREFECT__FLOW_RUN_ID={flow_run}".encode() in environment:
                found.append(int(folder.name))
    return found


def checkpoints(martlet: Martlet) -> list[Path]:
    return list((martlet.folder / "store" / "scratch").glob("*/work/checkpoint-*/trainer_state.json"))


def in_training(server: Server, martlet: Martlet, run: str, beyond: int = 20) -> dict[str, Any]:
    """Waits until the worker's training has saved a step after `beyond`, and gives its run."""
    wait_until(lambda: any(step > beyond for step in steps_saved(martlet)), 120)
    return next(child for child in server.children(run) if child["state_type"] == "RUNNING")


def steps_saved(martlet: Martlet) -> set[int]:
    return {int(path.parent.name.split("-")[1]) for path in checkpoints(martlet)}


def test_each_stage_runs_as_a_deployment_of_its_own(server: Server, first: str) -> None:
    names = {
        get(server.environment, f"deployments/{child['deployment_id']}")["entrypoint"]
        for child in server.children(first)
    }
    stages = ["download", "preprocess", "tokenize", "train", "merge"]
    assert names == {f"flows.deployments.{stage}" for stage in stages}
    assert len(server.children(first)) == 5
    queues = {child["work_queue_name"] for child in server.children(first)}
    assert queues == {"cpu", "gpu"}


def test_a_second_run_starts_no_worker(server: Server, martlet: Martlet, first: str) -> None:
    run = server.start("sft-then-export/workers", **get(server.environment, f"flow_runs/{first}")["parameters"])
    assert server.wait(run)["state_name"] == "Completed"
    assert list(server.tasks(run, 5).values()) == ["Cached"] * 5
    assert server.children(run) == []


def test_workers_and_one_process_make_the_same(server: Server, martlet: Martlet, first: str) -> None:
    flags = [
        word
        for name, value in COMMON.items()
        for word in (f"--{name}", *(value if isinstance(value, list) else [str(value)]))
    ]
    planned = martlet.json("plan", "sft", "--model", "tiny", *flags, "--max_steps", "4")
    assert {line["status"] for line in planned["stages"]} == {"cached"}


def test_one_stage_by_itself_with_digests(server: Server, martlet: Martlet, first: str) -> None:
    record = json.loads((martlet.folder / "store" / "runs" / f"{first}.json").read_text())
    merged = next(line["artifact"]["digest"] for line in record["stages"] if line["stage"] == "merge")
    run = server.start("quantize/gpu", model=merged, quant_bits=8)
    assert server.wait(run)["state_name"] == "Completed"
    assert server.tasks(run, 1) == {"quantize": "Completed"}
    shown = martlet.json("artifacts", "list")
    assert sum(artifact["kind"] == "model" for artifact in shown) == 3  # the base, the merged, and with 8 bits


def test_a_killed_worker_process_is_followed_by_one_that_resumes(server: Server, martlet: Martlet, first: str) -> None:
    run = server.start("sft/workers", model="tiny", **COMMON, max_steps=300, save_steps=20, learning_rate=3e-4)
    child = in_training(server, martlet, run)
    for process in processes_of(child["id"]):
        os.kill(process, signal.SIGKILL)
    done = server.wait(run, seconds=180)
    assert done["state_name"] == "Completed", done["state"]
    assert server.tasks(run, 4)["train"] == "Resumed"
    states = [child["state_type"] for child in server.children(run)]
    assert sorted(states) == ["COMPLETED", "CRASHED"]
    assert checkpoints(martlet) == []


def test_cancelling_a_flow_cancels_its_worker_which_saves(server: Server, martlet: Martlet, first: str) -> None:
    run = server.start("sft/workers", model="tiny", **COMMON, **LONG, learning_rate=4e-4)
    child = in_training(server, martlet, run)["id"]
    began = time.monotonic()
    server.set(run, "CANCELLING", "Cancelling")
    server.wait(child, "CANCELLING", "CANCELLED", seconds=10)
    told = time.monotonic() - began
    assert server.wait(child)["state_type"] == "CANCELLED"
    assert server.wait(run)["state_type"] == "CANCELLED"
    wait_until(lambda: not processes_of(child), 30)
    queue = get(server.environment, "work_pools/martlet/queues/gpu")
    assert queue["concurrency_limit"] == 1
    saved = steps_saved(martlet)
    assert any(step % LONG["save_steps"] for step in saved), saved
    assert told < 2.0

    # Its slot is free, and the same flow goes on from where it was saved.
    again = server.start("sft/workers", model="tiny", **COMMON, **LONG, learning_rate=4e-4)
    child = in_training(server, martlet, again, beyond=max(saved))["id"]
    server.set(again, "CANCELLING", "Cancelling")
    assert server.wait(again)["state_type"] == "CANCELLED"
    assert server.wait(child)["state_type"] == "CANCELLED"


def test_retrying_a_finished_flow_runs_only_what_is_not_in_the_store(
    server: Server, martlet: Martlet, first: str
) -> None:
    before = len(server.children(first))
    record = json.loads((martlet.folder / "store" / "runs" / f"{first}.json").read_text())
    key = next(line["key"] for line in record["stages"] if line["stage"] == "merge")
    (martlet.folder / "store" / "actions" / f"{key}.json").unlink()
    server.set(first, "SCHEDULED", "AwaitingRetry")
    wait_until(lambda: server.run(first)["run_count"] == 2, 60)
    assert server.wait(first)["state_name"] == "Completed"
    assert len(server.children(first)) == before + 1
    assert server.tasks(first, 5)["merge"] == "Completed"


def test_what_the_user_did_wrong_is_one_line_and_not_tried_again(server: Server, martlet: Martlet, first: str) -> None:
    words = ["sft", "--model", "tiny", "--dataset", "rows.jsonl", "--run_on", "workers", "--target_modules", "nothing"]
    done = martlet(*words, "--max_steps", "2", "--split_dataset_ratio", "0", "--max_length", "128", exit_code=2)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "target_modules" in errors[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"python": "3.9.1"}, "the flow that asked for the stage 3.9.1"),
        ({"body": {"version": 99}}, "stage version 99 → "),
        ({"body": {"libraries": {"torch": "1.0.0"}}}, "torch 1.0.0 → "),
        ({"inputs": {"model": f"sha256:{'0' * 64}"}}, "has no sha256:000000000000, which the flow's store"),
    ],
)
def test_a_worker_that_is_not_the_flows_own_refuses(
    change: dict[str, Any], said: str, server: Server, martlet: Martlet, first: str
) -> None:
    child = next(child for child in server.children(first) if "adapter" in child["parameters"].get("artifacts", {}))
    asked = child["parameters"]["asked"]
    for name, value in change.items():
        asked[name] = {**asked[name], **value} if isinstance(value, dict) else value
    run = server.start("merge/cpu", **{**child["parameters"], "asked": asked})
    assert server.wait(run)["state_type"] == "FAILED"
    record = json.loads((martlet.folder / "store" / "runs" / f"{run}.json").read_text())
    assert record["exit_code"] == 2
    assert said in record["error"]

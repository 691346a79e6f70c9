"""`sft-then-export` over docker workers: artifacts pass between containers, and one that is killed is replaced."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.containers.conftest import Stack
from tests.flows.conftest import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.slow]

TRAINING: dict[str, Any] = {
    "dataset": ["/given/rows.jsonl"], "split_dataset_ratio": 0.2, "max_length": 128, "per_device_train_batch_size": 2,
    "max_steps": 300, "save_steps": 20, "logging_steps": 10, "learning_rate": 1e-3, "lora_rank": 4,
}  # fmt: skip
PARAMETERS = {"model": "/given/tiny-llama", **TRAINING, "quant_method": "bnb", "quant_bits": 4}
ACTIVE = ("SCHEDULED", "PENDING", "RUNNING")
WHOLE = "find /store/scratch -path '*/work/checkpoint-*/trainer_state.json' | wc -l"


def in_training(stack: Stack, flow_run: str) -> str:
    """Waits until the flow's training has saved twice, and gives its container."""
    container = ""

    def has_saved() -> bool:
        nonlocal container
        assert stack.get(f"flow_runs/{flow_run}")["state_type"] in ACTIVE, stack.logs(flow_run)
        child = stack.child(flow_run, "train")
        container = stack.container(child) if child else ""
        if not container:
            return False
        return int(stack.docker.run("exec", container, "sh", "-c", WHOLE).stdout or 0) >= 2

    wait_until(has_saved, 420)
    return container


@pytest.fixture(scope="module")
def first(stack: Stack) -> dict[str, Any]:
    """A first run, as README starts it; the container of its training is killed."""
    words = [word for name, value in PARAMETERS.items() for word in ("-p", f"{name}={json.dumps(value)}")]
    stack.host("-m", "prefect", "deployment", "run", "sft-then-export/workers", *words)
    run = str(stack.post("flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "limit": 1})[0]["id"])
    stack.docker("kill", in_training(stack, run))
    return stack.wait(run, 420)


def test_a_killed_container_is_replaced_and_the_flow_completes(stack: Stack, first: dict[str, Any]) -> None:
    assert first["state_name"] == "Completed", stack.logs(first["id"])
    before, after = ["download", "preprocess", "tokenize"], ["merge", "quantize", *["evaluate"] * 3]
    wanted = [(stage, "Completed") for stage in before]
    wanted += [("train", "Crashed"), ("train", "Completed"), *((stage, "Completed") for stage in after)]
    assert stack.children(first["id"]) == wanted
    wait_until(lambda: stack.tasks(first["id"]).get("train") == "Resumed", 30)
    assert "was lost: Flow run infrastructure exited with non-zero status code 137" in stack.logs(first["id"])


def test_its_models_are_merged_quantized_and_evaluated(stack: Stack, first: dict[str, Any]) -> None:
    made = stack.martlet("artifacts", "list")
    assert {"model", "adapter", "dataset", "tokens", "report"} <= {each["kind"] for each in made}
    assert sum(each["kind"] == "report" for each in made) == 3
    lineage = stack.martlet("artifacts", "lineage", quantized(stack))
    assert "merge" in json.dumps(lineage)


def of_stage(stack: Stack, stage: str) -> list[str]:
    return [each["digest"] for each in stack.martlet("artifacts", "list") if each["stage"] == stage]


def quantized(stack: Stack) -> str:
    return of_stage(stack, "quantize")[0]


def test_one_stage_is_run_again_by_itself(stack: Stack, first: dict[str, Any]) -> None:
    (merged,) = of_stage(stack, "merge")
    before = of_stage(stack, "quantize")
    done = stack.wait(stack.start("quantize/gpu", model=merged, quant_bits=8))
    assert done["state_name"] == "Completed", stack.logs(done["id"])
    assert len(of_stage(stack, "quantize")) == len(before) + 1
    assert stack.children(done["id"]) == []


def test_an_unchanged_run_starts_no_container_but_its_own(stack: Stack, first: dict[str, Any]) -> None:
    done = stack.wait(stack.start("sft-then-export/workers", **PARAMETERS))
    assert done["state_name"] == "Completed", stack.logs(done["id"])
    wait_until(lambda: len(stack.tasks(done["id"])) == 9, 30)
    assert set(stack.tasks(done["id"]).values()) == {"Cached"}
    assert stack.children(done["id"]) == []


def test_a_stopped_container_gives_its_run_back_to_the_queue(stack: Stack) -> None:
    """As when its machine shuts down: SIGTERM, and the same run goes on in another container."""
    run = stack.start("sft/workers", model="/given/tiny-llama", **{**TRAINING, "learning_rate": 2e-3})
    container = in_training(stack, run)
    stack.docker("stop", "--time", "30", container)
    done = stack.wait(run)
    assert done["state_name"] == "Completed", stack.logs(run)
    assert [state for stage, state in stack.children(run) if stage == "train"] == ["Completed"]
    wait_until(lambda: stack.tasks(run).get("train") == "Resumed", 30)
    worker = stack.compose("ps", "--quiet", "worker-gpu").strip()
    assert stack.docker("inspect", "--format", "{{.RestartCount}}", worker) == "0"


def test_cancelling_a_flow_ends_its_containers_and_training_saves(stack: Stack) -> None:
    longer = {**TRAINING, "learning_rate": 3e-3, "max_steps": 30000, "save_steps": 100}
    run = stack.start("sft/workers", model="/given/tiny-llama", **longer)
    container = in_training(stack, run)
    child = stack.child(run, "train")
    stack.post(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    began = time.monotonic()
    wait_until(lambda: stack.get(f"flow_runs/{child}")["state_type"] in ("CANCELLING", "CANCELLED"), 30)
    assert time.monotonic() - began < 5
    assert stack.wait(run)["state_name"] == "Cancelled"
    assert stack.wait(child)["state_name"] == "Cancelled"
    wait_until(lambda: not stack.container(child) and not stack.container(run), 30)
    assert container

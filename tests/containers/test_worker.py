"""Docker workers asked from the host, whose paths are others than the containers'; and what they are asked in vain."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.artifacts.store import open_store
from tests.containers.conftest import Docker, Stack

pytestmark = [pytest.mark.docker, pytest.mark.slow]


@pytest.fixture(scope="module")
def on_host(stack: Stack, docker: Docker, core_image: str, as_me: str) -> Iterator[Path]:
    """A store in a folder of the host, which containers have as /store; the image by its id."""
    store = stack.given.with_name("host-store")
    store.mkdir()
    before = {"image": core_image, "volumes": stack.volumes, "user": "1000:1000"}
    image = docker("image", "inspect", "--format", "{{.Id}}", core_image)
    # Without the volume of /scratch, in which other tests write as another user.
    text = stack.set_up(image=image, volumes=[f"{store}:/store"], user=as_me)
    assert "work pool martlet: updated (docker)" in text
    yield store
    stack.set_up(**before)


def test_a_flow_on_the_host_runs_its_stages_in_containers(
    stack: Stack, docker: Docker, core_image: str, on_host: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    rows = stack.given / "rows.jsonl"
    recipe.write_text(
        f"flow: sft\nmodel: {stack.given / 'tiny-llama'}\ndataset: [{rows}]\nmax_steps: 3\nmax_length: 128\n"
    )
    words = ["-m", "flows.cli", "run", str(recipe), "--run_on", "workers", "--json"]
    done = stack.host(*words, MARTLET_STORE=str(on_host))
    record = json.loads(done.stdout.splitlines()[-1])
    assert {stage["status"] for stage in record["stages"]} <= {"ran", "skipped"}
    adapter = next(stage["artifact"]["digest"] for stage in record["stages"] if stage["stage"] == "train")
    store = open_store(str(on_host))
    machine = store.manifests(store.find(adapter))[0].machine
    assert machine["image"] == docker("image", "inspect", "--format", "{{.Id}}", core_image)
    assert machine["image_content"] == docker("run", "--rm", core_image, "cat", "/opt/martlet/.content")
    assert machine["commit"]
    assert (Path(record["output_dir"]) / "checkpoint-3" / "adapter_model.safetensors").is_file()


GPUS = [{"Driver": "nvidia", "Count": -1, "Capabilities": [["gpu"]]}]
IN_VAIN: list[tuple[str, dict[str, Any], str, str]] = [
    ("no image", {"image": "martlet-no-such"}, "Crashed", "No such image: martlet-no-such:latest"),
    ("no GPU", {"device_requests": GPUS}, "Crashed", 'could not select device driver "nvidia"'),
    ("store of another user", {}, "Failed", "cannot write to the store /store: Permission denied"),
]


@pytest.mark.parametrize(("case", "variables", "state", "says"), IN_VAIN, ids=[each[0] for each in IN_VAIN])
def test_what_cannot_work_is_one_line_and_no_silent_wait(
    case: str, variables: dict[str, Any], state: str, says: str, stack: Stack, docker: Docker, tmp_path: Path
) -> None:
    if case == "no GPU" and '"nvidia"' in docker("info", "--format", "{{json .Runtimes}}"):
        pytest.skip("this daemon has NVIDIA's runtime")
    if case == "store of another user":
        tmp_path.chmod(0o755)
        variables = {"volumes": [f"{tmp_path}:/store", f"{stack.given}:/given:ro"], "user": "4242:4242"}
    done = stack.wait(stack.start("download/cpu", variables, model="/given/tiny-llama"))
    assert done["state_name"] == state
    assert says in done["state"]["message"]
    assert "\n" not in done["state"]["message"]


def test_a_flow_says_what_its_worker_could_not_start(stack: Stack, on_host: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    rows = stack.given / "rows.jsonl"
    recipe.write_text(f"flow: sft\nmodel: {stack.given / 'tiny-llama'}\ndataset: [{rows}]\nmax_length: 64\n")
    words = ["-m", "flows.cli", "run", str(recipe), "--run_on", "workers"]
    stack.set_up(image="martlet-no-such")
    done = stack.host(*words, exit_code=1, MARTLET_STORE=str(tmp_path / "store"))
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "download/cpu" in errors[0]
    assert "No such image: martlet-no-such" in errors[0]

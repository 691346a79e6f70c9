"""The images, built for real: what is in them, who runs in them, and that a stage makes the same bytes as outside."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.arguments import DownloadArguments, MergeArguments, PreprocessArguments, TokenizeArguments, TrainArguments
from stages.artifacts.store import open_store
from stages.registry import get_stage
from stages.run import run_stage
from tests.containers.conftest import PROJECT, Docker, built
from tests.flows.conftest import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.slow]


@pytest.fixture
def volume(docker: Docker) -> Iterator[str]:
    """A named volume of its own."""
    name = docker("volume", "create")
    yield name
    docker("volume", "rm", "--force", name)


def answer(stdout: str) -> Any:
    return json.loads(stdout.splitlines()[-1])


def test_it_is_labelled_and_runs_as_a_user_without_rights(docker: Docker, core_image: str) -> None:
    config = json.loads(docker("image", "inspect", "--format", "{{json .Config}}", core_image))
    assert config["User"] == "martlet"
    assert config["Labels"]["martlet.environment"] == "core"
    assert config["Labels"]["org.opencontainers.image.version"] in (PROJECT / "pyproject.toml").read_text()
    commit = config["Labels"]["org.opencontainers.image.revision"]
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?", commit)
    assert f"MARTLET_COMMIT={commit}" in config["Env"]
    assert config["Healthcheck"]["Test"][0] == "CMD-SHELL"
    assert docker("run", "--rm", core_image, "id", "-u") == "1000"


def test_nothing_of_the_machine_that_built_it_is_left(docker: Docker, core_image: str) -> None:
    folders = "/root /tmp /run/secrets /opt/uv /wheels /requirements.lock /install.sh"
    left = docker("run", "--rm", "--user", "0:0", core_image, "sh", "-c", f"find {folders} -type f 2>/dev/null || true")
    assert not [path for path in left.split() if not path.startswith(("/root/.bashrc", "/root/.profile"))]
    config = docker("image", "inspect", core_image)
    assert "PIP_" not in config
    assert "ca-certificates" not in config


UNCOMPILED = """
import json, os, sys
import flows.cli, peft, prefect
specs = [vars(m).get("__spec__") for m in list(sys.modules.values())]
files = [(s.origin, s.cached) for s in specs if s is not None and s.has_location]
print(json.dumps([file for file, cached in files if file.endswith(".py") and not os.path.exists(cached or '')]))
"""


def test_all_that_is_imported_is_compiled(docker: Docker, core_image: str) -> None:
    """Without bytecode each start would compile anew, since a read-only container cannot keep it."""
    assert answer(docker("run", "--rm", core_image, "python", "-c", UNCOMPILED)) == []


def test_a_change_of_the_code_builds_in_seconds(docker: Docker, core_image: str, base_image: str) -> None:
    layers = docker("history", "--no-trunc", "--format", "{{.Size}} {{.CreatedBy}}", core_image).splitlines()
    code = [line for line in layers if "COPY ." in line or "install.sh project" in line]
    assert len(code) == 2
    for line in code:
        assert re.match(r"[\d.]+(k|M)B", line), line
        assert "MB" not in line.split()[0] or float(line.split("MB")[0]) < 10
    started = time.monotonic()
    built(docker, base_image, "core")
    assert time.monotonic() - started < 20


def test_an_image_knows_its_content(docker: Docker, core_image: str, base_image: str, tmp_path: Path) -> None:
    """The same files give the same digest; another line of code another one."""

    def content(image: str) -> str:
        return docker("run", "--rm", image, "cat", "/opt/martlet/.content")

    before = content(core_image)
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", before)
    for name in ("containers", "stages", "flows", "configs"):
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("prefect.yaml", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, tmp_path / name)
    assert content(built(docker, base_image, "core", tmp_path, "martlet-test-copy")) == before
    with (tmp_path / "stages" / "merge.py").open("a") as file:
        file.write("# changed\n")
    changed = built(docker, base_image, "core", tmp_path, "martlet-test-copy")
    assert content(changed) != before
    docker("image", "rm", changed)


def test_a_stage_runs_read_only_as_a_user_without_rights(docker: Docker, core_image: str, volume: str) -> None:
    rows = "query,response\\na,b\\nc,d\\n"
    script = f"printf '{rows}' > /scratch/rows.csv && python -m stages preprocess --dataset /scratch/rows.csv --json"
    options = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--volume", f"{volume}:/store")
    command = ("run", "--rm", *options, core_image, "sh", "-c", script)
    first, second = answer(docker(*command)), answer(docker(*command))
    assert (first["status"], second["status"]) == ("ran", "cached")
    assert first["artifact"] == second["artifact"]
    refused = docker.run("run", "--rm", *options, core_image, "touch", "/opt/martlet/stages/new.py")
    assert "Read-only file system" in refused.stderr


def test_stages_in_containers_make_what_they_make_outside(
    docker: Docker, core_image: str, as_me: str, tiny_model: Path, alpaca_file: Path, tmp_path: Path
) -> None:
    """Download to merge, each in a container of its own, artifacts passing by the store: the same digests as here."""
    (tmp_path / "store").mkdir()
    mounts = (f"{tmp_path / 'store'}:/store", f"{tiny_model}:/given/model:ro", f"{alpaca_file}:/given/rows.jsonl:ro")
    options = ["--user", as_me, *(word for mount in mounts for word in ("--volume", mount))]

    def inside(*words: str) -> str:
        done = docker.stage(core_image, *options, words=[*words, "--json"])
        assert done.returncode == 0, done.stderr
        return str(answer(done.stdout)["artifact"]["digest"])

    def outside(stage: str, arguments: Any, **inputs: Any) -> Any:
        return run_stage(get_stage(stage), arguments, inputs, store=open_store()).artifact

    model = inside("download", "--model", "/given/model")
    dataset = inside("preprocess", "--dataset", "/given/rows.jsonl")
    tokens = inside("tokenize", "--input", f"dataset={dataset}", "--input", f"model={model}")
    adapter = inside("train", "--input", f"model={model}", "--input", f"tokens={tokens}", "--max_steps", "3")
    merged = inside("merge", "--input", f"model={model}", "--input", f"adapter={adapter}")

    here = outside("download", DownloadArguments(model=str(tiny_model)))
    rows = outside("preprocess", PreprocessArguments(dataset=[str(alpaca_file)]))
    ids = outside("tokenize", TokenizeArguments(), dataset=rows, model=here)
    lora = outside("train", TrainArguments(max_steps=3), model=here, tokens=ids)
    whole = outside("merge", MergeArguments(), model=here, adapter=lora)
    assert [model, dataset, tokens, adapter, merged] == [x.digest for x in (here, rows, ids, lora, whole)]


WAITS_FOR_SIGTERM = """
import time
from stages.stopping import StopSignals
with StopSignals() as stop:
    print("up", flush=True)
    while not stop.is_requested():
        time.sleep(0.1)
raise SystemExit(stop.exit_code)
"""


def test_sigterm_reaches_the_first_process(docker: Docker, core_image: str) -> None:
    container = docker("run", "--detach", core_image, "python", "-c", WAITS_FOR_SIGTERM)
    try:
        wait_until(lambda: "up" in docker("logs", container), 30)
        started = time.monotonic()
        docker("stop", "--time", "20", container)
        assert time.monotonic() - started < 10
        assert docker("inspect", "--format", "{{.State.ExitCode}}", container) == "143"
    finally:
        docker("rm", "--force", "--volumes", container)


def test_an_image_without_an_environment_names_the_one_that_has_it(docker: Docker, core_image: str) -> None:
    code = "from stages.environments import interpreter; interpreter('evaluate')"
    done = docker.run("run", "--rm", core_image, "python", "-c", code)
    assert (
        "environment evaluate is missing (/opt/environments/evaluate): take the image martlet-evaluate" in done.stderr
    )


def test_evaluate_stands_on_core_and_finds_its_own_environment(docker: Docker, evaluate_image: str) -> None:
    listed = answer(docker("run", "--rm", evaluate_image, "martlet", "env", "list", "--json"))
    assert {e["name"]: e["state"] for e in listed} == {"core": "ready", "evaluate": "ready", "worker": "missing"}
    python = "/opt/environments/evaluate/bin/python"
    code = "import evalscope; print(evalscope.__version__)"
    assert docker("run", "--rm", evaluate_image, python, "-c", code) == "1.14.1"


def test_the_worker_is_small_and_knows_both_kinds_of_containers(docker: Docker, worker_image: str) -> None:
    assert int(docker("image", "inspect", "--format", "{{.Size}}", worker_image)) < 700e6
    code = "from prefect.plugins import load_prefect_collections as load; print(*sorted(load()))"
    assert docker("run", "--rm", worker_image, "python", "-c", code) == "prefect_docker prefect_kubernetes"

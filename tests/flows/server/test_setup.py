"""`martlet setup`, `setup --check` and `schedule` against a real server; automations that really act."""

from __future__ import annotations

import json
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import alpaca_rows
from tests.flows.conftest import Martlet, api, get, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.server]

RECIPE = "flow: sft-then-export\nmodel: tiny\ndataset: [rows.jsonl, hf::org/data#10]\nmax_steps: 2\n"


@pytest.fixture(scope="module")
def martlet(tmp_path_factory: pytest.TempPathFactory, prefect_environment: dict[str, str], tiny_model: Path) -> Martlet:
    folder = tmp_path_factory.mktemp("user")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in alpaca_rows(12)))
    (folder / "tiny").symlink_to(tiny_model)
    (folder / "nightly.yaml").write_text(RECIPE.replace(", hf::org/data#10", ""))
    return Martlet({**prefect_environment, "MARTLET_STORE": str(folder / "store")}, folder)


@pytest.fixture(scope="module")
def set_up(martlet: Martlet, hook: tuple[str, list[dict[str, Any]]], mailbox: tuple[str, list[str]]) -> str:
    return martlet("setup", MARTLET_NOTIFY_WEBHOOK=hook[0], MARTLET_NOTIFY_EMAIL=mailbox[0]).stdout


@pytest.fixture(scope="module")
def mailbox() -> Iterator[tuple[str, list[str]]]:
    """Somebody's own mail server: as much of SMTP as one message needs."""
    letters: list[str] = []

    class Session(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            while line := self.rfile.readline():
                if line.upper().startswith(b"DATA"):
                    self.wfile.write(b"354 go on\r\n")
                    letters.append("".join(part.decode() for part in iter(self.rfile.readline, b".\r\n")))
                self.wfile.write(b"221 bye\r\n" if line.upper().startswith(b"QUIT") else b"250 fine\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Session) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        yield f"mailto://127.0.0.1:{port}?from=martlet@example.com&to=me@example.com&mode=insecure", letters
        server.shutdown()


@pytest.fixture(scope="module")
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Somebody's own web server, which is told of failures."""
    heard: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook?token=hidden", heard
    server.shutdown()
    server.server_close()


def test_it_says_what_it_makes_and_can_be_repeated(martlet: Martlet, set_up: str) -> None:
    again = martlet("setup").stdout
    for what in (
        "work queue gpu",
        "deployment sft-then-export/workers",
        "deployment train/gpu",
        "automation martlet: lost runs",
    ):
        assert f"{what}: " in set_up
        assert f"{what}: " in again
    assert ": created" not in again
    assert len(api(martlet.environment, "automations/filter", {})) == 4
    queue = get(martlet.environment, "work_pools/martlet/queues/gpu")
    assert queue["concurrency_limit"] == 1


def test_what_somebody_has_set_stays(martlet: Martlet, set_up: str) -> None:
    martlet("setup", "--gpus", "4", "--variable", "store=s3://bucket/prefix")
    assert "4 at a time" in martlet("setup").stdout
    template = get(martlet.environment, "work_pools/martlet")["base_job_template"]
    assert template["variables"]["properties"]["store"]["default"] == "s3://bucket/prefix"
    martlet("setup", "--gpus", "1", "--variable", "store=null")
    properties = get(martlet.environment, "work_pools/martlet")["base_job_template"]["variables"]["properties"]
    assert "default" not in properties["store"]

    deployment = get(martlet.environment, "deployments/name/nightly-retrain/local")
    [schedule] = deployment["schedules"]
    assert schedule["active"] is False
    url = f"{martlet.environment['PREFECT_API_URL']}/deployments/{deployment['id']}"
    given = {"parameters": {**deployment["parameters"], "model": "tiny"}}
    httpx.patch(url, json=given, timeout=30).raise_for_status()
    httpx.patch(f"{url}/schedules/{schedule['id']}", json={"active": True}, timeout=30).raise_for_status()
    martlet("setup")
    deployment = get(martlet.environment, "deployments/name/nightly-retrain/local")
    assert deployment["parameters"] == {"run_on": "here", "model": "tiny"}
    [schedule] = deployment["schedules"]
    assert (schedule["active"], schedule["schedule"]["cron"]) == (True, "0 2 * * *")
    httpx.patch(f"{url}/schedules/{schedule['id']}", json={"active": False}, timeout=30).raise_for_status()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--worker", "docker"], "martlet setup takes no --worker"),
        (["--workers", "podman"], "--workers podman: choose from process, docker, kubernetes"),
        (["--workers", "docker"], "is there with workers of type process"),
        (["--gpus", "many"], "--gpus many is no number"),
        (["--variable", "shop=s3://bucket"], "--variable shop: a process pool has no such variable"),
        (["--check", "--gpus", "1"], "--check makes nothing"),
    ],
)
def test_bad_options_are_one_line(words: list[str], said: str, martlet: Martlet, set_up: str) -> None:
    done = martlet("setup", *words, exit_code=2)
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_webhook_that_is_none_is_refused_and_not_shown(martlet: Martlet, set_up: str) -> None:
    done = martlet("setup", exit_code=2, MARTLET_NOTIFY_WEBHOOK="secret.example/token")
    assert "MARTLET_NOTIFY_WEBHOOK" in done.stderr
    assert "token" not in done.stderr


def test_check_says_what_is_missing_and_asks_the_workers(martlet: Martlet, set_up: str) -> None:
    lacking = martlet("setup", "--check", exit_code=1).stdout
    assert "missing worker of gpu: prefect worker start --pool martlet --work-queue gpu" in lacking
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "martlet"]
    other = {**martlet.environment, "MARTLET_STORE": str(martlet.folder / "another-store")}
    for environment, exit_code, said in (
        (martlet.environment, 1, "ok      a worker of cpu reads and writes the store"),  # 1: there is no GPU here
        (other, 1, "missing a worker of cpu could not write into the store"),
    ):
        worker = subprocess.Popen(
            command, env=environment, cwd=martlet.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_until(lambda: "missing worker of" not in martlet("setup", "--check", exit_code=1).stdout, 60)
            assert said in martlet("setup", "--check", exit_code=exit_code).stdout
        finally:
            worker.terminate()
            worker.wait(30)


def test_a_recipe_is_scheduled(martlet: Martlet, set_up: str) -> None:
    martlet("schedule", "nightly.yaml", "--cron", "0 2 * * *", "--timezone", "Europe/Berlin")
    deployment = get(martlet.environment, "deployments/name/sft-then-export/nightly")
    [schedule] = deployment["schedules"]
    assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"], schedule["active"]) == (
        "0 2 * * *",
        "Europe/Berlin",
        True,
    )
    assert deployment["parameters"] == {"model": "tiny", "dataset": ["rows.jsonl"], "max_steps": 2, "run_on": "here"}
    assert "updated" in martlet("schedule", "nightly.yaml", "--cron", "0 3 * * *", "--max_steps", "3").stdout
    deployment = get(martlet.environment, "deployments/name/sft-then-export/nightly")
    assert [each["schedule"]["cron"] for each in deployment["schedules"]] == ["0 3 * * *"]
    assert deployment["parameters"]["max_steps"] == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nightly.yaml"], "needs --cron"),
        (["nightly.yaml", "--cron", "at night"], "--cron 'at night'"),
        (["nightly.yaml", "--cron", "0 2 * * *", "--timezone", "Berlin"], "--timezone Berlin"),
        (["nightly.yaml", "--cron", "0 2 * * *", "--lora_rnk", "8"], "Did you mean --lora_rank?"),
        (["nightly.yaml", "--on_dataset", "true"], "no dataset of a hub"),
        (["nightly.yaml", "--cron", "0 2 * * *", "--deployment", "local"], "choose another name"),
    ],
)
def test_a_bad_schedule_is_one_line(words: list[str], said: str, martlet: Martlet, set_up: str) -> None:
    done = martlet("schedule", *words, exit_code=2)
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def deployed_run(martlet: Martlet, name: str, **parameters: Any) -> str:
    deployment = get(martlet.environment, f"deployments/name/{name}")["id"]
    made = api(martlet.environment, f"deployments/{deployment}/create_flow_run", {"parameters": parameters})
    return str(made["id"])


def set_state(martlet: Martlet, run: str, type_: str) -> None:
    api(martlet.environment, f"flow_runs/{run}/set_state", {"state": {"type": type_}, "force": True})


def test_a_run_that_lost_its_process_is_ended(martlet: Martlet, set_up: str) -> None:
    """The shipped automation with a shorter time: a heartbeat, and then nothing."""
    found = api(martlet.environment, "automations/filter", {"automations": {"name": {"any_": ["martlet: lost runs"]}}})
    [automation] = [each for each in found if each["name"] == "martlet: lost runs"]
    assert automation["trigger"]["within"] == 100.0
    trigger = {**automation["trigger"], "within": 10.0}
    short = {**automation, "name": "short", "trigger": trigger}
    given = {name: short[name] for name in ("name", "description", "trigger", "actions")}
    made = api(martlet.environment, "automations/", given)["id"]
    run = deployed_run(martlet, "check/cpu")
    set_state(martlet, run, "RUNNING")
    event = {
        "event": "prefect.flow-run.heartbeat",
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
        "occurred": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "related": [{"prefect.resource.id": "prefect.tag.martlet", "prefect.resource.role": "tag"}],
        "payload": {},
        "id": run,
    }
    api_no_answer(martlet.environment, "events", [event])
    try:
        wait_until(lambda: get(martlet.environment, f"flow_runs/{run}")["state_type"] == "CRASHED", 60)
    finally:
        httpx.delete(f"{martlet.environment['PREFECT_API_URL']}/automations/{made}", timeout=30).raise_for_status()
    assert "no heartbeat" in get(martlet.environment, f"flow_runs/{run}")["state"]["message"]


def api_no_answer(environment: dict[str, str], path: str, body: Any) -> None:
    httpx.post(f"{environment['PREFECT_API_URL']}/{path}", json=body, timeout=30).raise_for_status()


def test_a_failed_flow_is_told_to_the_webhook_and_by_email(
    martlet: Martlet, set_up: str, hook: tuple[str, list[dict[str, Any]]], mailbox: tuple[str, list[str]]
) -> None:
    run = deployed_run(martlet, "sft-then-export/local", model="tiny", dataset=["rows.jsonl"])
    body = {"state": {"type": "FAILED", "message": 'the loss "exploded"'}, "force": True}
    api(martlet.environment, f"flow_runs/{run}/set_state", body)
    wait_until(lambda: hook[1], 30)
    assert hook[1][0]["flow"] == "sft-then-export"
    assert hook[1][0]["message"] == 'the loss "exploded"'
    assert run in hook[1][0]["url"]
    wait_until(lambda: mailbox[1], 30)
    assert "failed" in mailbox[1][0]
    assert "me@example.com" in mailbox[1][0]
    child = deployed_run(martlet, "train/gpu")
    set_state(martlet, child, "FAILED")
    time.sleep(3)
    assert len(hook[1]) == 1, "of a flow's stages only the flow speaks"


def test_without_a_worker_it_says_so_and_can_be_stopped(martlet: Martlet, set_up: str) -> None:
    command = [sys.executable, "-m", "flows.cli", "run", "nightly.yaml", "--run_on", "workers", "--json"]
    log = martlet.folder / "waiting.log"
    with log.open("w") as file:
        flow = subprocess.Popen(command, env=martlet.environment, cwd=martlet.folder, stdout=file, stderr=file)
    said = "no worker listens on the queue cpu: prefect worker start --pool martlet --work-queue cpu"
    wait_until(lambda: said in log.read_text(), 75)
    waiting = api(
        martlet.environment, "flow_runs/filter", {"flow_runs": {"state": {"name": {"any_": ["AwaitingWorker"]}}}}
    )
    assert len(waiting) == 1
    flow.send_signal(signal.SIGINT)
    assert flow.wait(30) == 130
    assert get(martlet.environment, f"flow_runs/{waiting[0]['id']}")["state_type"] == "CANCELLED"
    children = {"flow_runs": {"parent_flow_run_id": {"any_": [waiting[0]["id"]]}}}
    assert [child["state_type"] for child in api(martlet.environment, "flow_runs/filter", children)] == ["CANCELLED"]
    assert "Traceback" not in log.read_text()


def test_a_deployment_that_is_not_there_is_said_before_the_first_stage(martlet: Martlet, set_up: str) -> None:
    url = martlet.environment["PREFECT_API_URL"]
    deployment = get(martlet.environment, "deployments/name/merge/cpu")["id"]
    httpx.delete(f"{url}/deployments/{deployment}", timeout=30).raise_for_status()
    done = martlet("run", "nightly.yaml", "--run_on", "workers", exit_code=2)
    assert "error: there is no deployment merge/cpu on the Prefect server" in done.stderr
    assert "missing deployments: merge/cpu: run `martlet setup`" in martlet("setup", "--check", exit_code=1).stdout
    martlet("setup")
    assert get(martlet.environment, "deployments/name/merge/cpu")


def test_workers_need_a_server(martlet: Martlet) -> None:
    done = martlet("run", "nightly.yaml", "--run_on", "workers", exit_code=2, PREFECT_API_URL="")
    assert "--run_on workers needs a Prefect server" in done.stderr

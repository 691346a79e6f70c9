"""`martlet webhook`: real requests, and the events that a real Prefect server then has."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from flows.cli import main
from flows.server.webhook import HEADER, MAX_BYTES
from tests.flows.conftest import PROJECT, api, free_port, wait_until

SECRET = "a long secret, with ünicode"
SET = {"MARTLET_WEBHOOK_SECRET": "s", "PREFECT_API_URL": "http://127.0.0.1:1/api"}
REVISION = "0123456789abcdef0123456789abcdef01234567"


def payload(**repo: Any) -> dict[str, Any]:
    """As Hugging Face sends it after a push."""
    return {
        "event": {"action": "update", "scope": "repo.content"},
        "repo": {"type": "dataset", "name": "org/rows", "id": "1", "private": False, "headSha": REVISION, **repo},
        "updatedRefs": [{"ref": "refs/heads/main", "oldSha": "0" * 40, "newSha": REVISION}],
        "webhook": {"id": "2", "version": 3},
    }


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        ([], {}, "needs a secret: set MARTLET_WEBHOOK_SECRET"),
        ([], {"MARTLET_WEBHOOK_SECRET": "s"}, "needs a Prefect server"),
        (["--secret", "s"], {}, "takes no --secret"),
        (["--port", "x"], SET, "--port x: must be a number"),
        (["--host", "256.0.0.1"], SET, "--host 256.0.0.1"),
    ],
)
def test_one_line_and_exit_2(
    words: list[str],
    environment: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("MARTLET_WEBHOOK_SECRET", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["webhook", *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1


def test_a_port_that_is_taken_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MARTLET_WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["webhook", "--port", str(taken.getsockname()[1])]) == 2
    assert "in use. Choose another" in capsys.readouterr().err


def start(environment: dict[str, str], log: Path) -> Iterator[str]:
    """A receiver as a process of its own; gives its address."""
    command = [sys.executable, "-m", "flows.cli", "webhook", "--port", "0"]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=PROJECT, env={**environment, "MARTLET_WEBHOOK_SECRET": SECRET}, stdout=file, stderr=file
        )
        wait_until(lambda: "listening on" in log.read_text(), 60)
        yield log.read_text().split()[2].rstrip(",")
        process.terminate()
        process.wait(30)
    assert SECRET not in log.read_text()


@pytest.fixture(scope="module")
def receiver(prefect_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from start(prefect_environment, tmp_path_factory.mktemp("webhook") / "log")


@pytest.fixture
def receiver_without_server(prefect_environment: dict[str, str], tmp_path: Path) -> Iterator[str]:
    yield from start(
        {**prefect_environment, "PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api"}, tmp_path / "log"
    )


def post(url: str, body: bytes, secret: str | None = SECRET) -> tuple[int, dict[str, Any]]:
    headers = {"content-type": "application/json"}
    if secret is not None:
        headers[HEADER] = secret.encode().decode("latin-1")  # as bytes: what a client of any language sends
    request = urllib.request.Request(url, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def events(environment: dict[str, str], name: str) -> list[dict[str, Any]]:
    wanted = {
        "filter": {"event": {"name": ["martlet.dataset.updated"]}, "resource": {"id": [f"martlet.dataset.{name}"]}}
    }
    found: list[dict[str, Any]] = api(environment, "events/filter", wanted)["events"]
    return found


@pytest.mark.server
@pytest.mark.slow
def test_a_push_to_a_dataset_is_an_event(receiver: str, prefect_environment: dict[str, str]) -> None:
    assert post(receiver, json.dumps(payload(name="org/new.rows")).encode()) == (200, {"emitted": True})
    wait_until(lambda: events(prefect_environment, "org/new.rows"), 30)
    [event] = events(prefect_environment, "org/new.rows")
    assert event["payload"] == {"name": "org/new.rows", "revision": REVISION, "refs": ["refs/heads/main"]}
    assert event["resource"]["prefect.resource.name"] == "org/new.rows"


@pytest.mark.server
@pytest.mark.slow
def test_what_is_no_new_data_or_not_from_the_hub_is_no_event(
    receiver: str, prefect_environment: dict[str, str]
) -> None:
    good = payload()
    discussion = {**good, "event": {"action": "create", "scope": "discussion"}}
    pull_request = {**good, "updatedRefs": [{"ref": "refs/pr/1", "oldSha": None, "newSha": REVISION}]}
    for body, secret, answer in (
        (good, None, (401, "not the secret")),
        (good, "wrong", (401, "not the secret")),
        (good, "", (401, "not the secret")),
        (payload(type="model"), SECRET, (200, "a model, not a dataset")),
        (discussion, SECRET, (200, "create of discussion, not of content")),
        (pull_request, SECRET, (200, "no branch has moved")),
        (payload(name="../../etc"), SECRET, (400, "not the JSON of a Hugging Face webhook")),
        (payload(headSha="{{ x }}"), SECRET, (400, "not the JSON of a Hugging Face webhook")),
        ([1], SECRET, (400, "not the JSON of a Hugging Face webhook")),
    ):
        status, said = post(receiver, json.dumps(body).encode(), secret)
        assert status == answer[0], body
        assert answer[1] in said.get("error", said.get("reason", "")), body
        assert said.get("emitted") is not True
    assert post(receiver, b"{broken")[0] == 400
    assert post(receiver, b" " * (MAX_BYTES + 1))[0] == 413
    assert post(receiver, json.dumps(payload(name="org/after")).encode())[0] == 200
    wait_until(lambda: events(prefect_environment, "org/after"), 30)
    assert events(prefect_environment, "org/rows") == []


@pytest.mark.server
@pytest.mark.slow
def test_a_server_that_is_away_is_a_503_so_that_the_hub_sends_again(receiver_without_server: str) -> None:
    status, said = post(receiver_without_server, json.dumps(payload()).encode())
    assert (status, said["error"]) == (503, "the Prefect server did not take the event: send it again")


@pytest.mark.server
@pytest.mark.slow
def test_new_rows_start_the_retraining(receiver: str, prefect_environment: dict[str, str]) -> None:
    from flows.server.automations import new_data

    flow = api(prefect_environment, "flows/", {"name": "nightly-retrain"})["id"]
    deployment = api(prefect_environment, "deployments/", {"name": "hooked", "flow_id": flow})["id"]
    automation = new_data("nightly-retrain/hooked", ["org/fresh"], UUID(deployment))
    api(prefect_environment, "automations/", automation.model_dump(mode="json"))

    def runs() -> list[dict[str, Any]]:
        wanted = {"deployments": {"id": {"any_": [deployment]}}}
        return list(api(prefect_environment, "flow_runs/filter", wanted))

    assert post(receiver, json.dumps(payload(name="org/stale")).encode()) == (200, {"emitted": True})
    assert post(receiver, json.dumps(payload(name="org/fresh")).encode()) == (200, {"emitted": True})
    wait_until(runs, 60)
    [run] = runs()
    assert run["state_type"] == "SCHEDULED"
    assert run["created_by"]["type"] == "AUTOMATION"

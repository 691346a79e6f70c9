"""A real Prefect server, and the `martlet` command as a real process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def prefect_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Starts a Prefect server with a home of its own; gives the environment in which it is used."""
    home = tmp_path_factory.mktemp("prefect")
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "COLUMNS": "200",
    }
    log = (home / "server.log").open("w")
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: answers(f"{url}/health"), 90)
        yield environment
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def wait_for(condition: Callable[[], object], seconds: float) -> bool:
    """Waits for a condition; whether it came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    """Waits for a condition, and fails if it does not come true in time."""
    if not wait_for(condition, seconds):
        raise AssertionError(f"not true after {seconds} s")


@dataclass
class Martlet:
    """`martlet …` in a folder and with a store of its own."""

    environment: dict[str, str]
    folder: Path

    def __call__(self, *words: str, exit_code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a command line to its end and checks its exit code."""
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *words],
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == exit_code, done.stdout + done.stderr
        return done

    def json(self, *words: str, exit_code: int = 0) -> Any:
        """The object in the last line of stdout."""
        return json.loads(self(*words, "--json", exit_code=exit_code).stdout.splitlines()[-1])

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Starts a command line and leaves it running."""
        command = [sys.executable, "-m", "flows.cli", *words]
        nowhere = subprocess.DEVNULL
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=nowhere, stderr=nowhere, text=True
        )


def api(environment: dict[str, str], path: str, body: dict[str, Any]) -> Any:
    """A POST to the Prefect server."""
    request = urllib.request.Request(
        f"{environment['PREFECT_API_URL']}/{path}",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    return _answer(request)


def get(environment: dict[str, str], path: str) -> Any:
    """A GET from the Prefect server."""
    return _answer(urllib.request.Request(f"{environment['PREFECT_API_URL']}/{path}"))


def _answer(request: urllib.request.Request) -> Any:
    """As Prefect's own client does, asks again where SQLite was busy (503)."""
    for pause in (0.5, 1.0, 2.0, 4.0):
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            time.sleep(pause)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)

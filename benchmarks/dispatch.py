"""How long a stage takes on a worker from being asked for to its first line of work, in a process or a container.

    .venvs/core/bin/python benchmarks/dispatch.py --pool-type process
    .venvs/core/bin/python benchmarks/dispatch.py --pool-type docker --image martlet-core

Starts a Prefect server, `martlet setup` and a worker that asks for work every second, all in a temporary folder, and
runs `preprocess/cpu` on one row, anew each time. Times are the server's own of the run's states, and the manifest's of
the stage: `asked` until the worker has seen it, `start` until Prefect runs the flow, `stage` until the stage works.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from stages.artifacts.store import open_store
from stages.environments import interpreter

PARTS = ("asked", "start", "stage")
# Beyond a second of polling: what the issue of this figure allows.
ALLOWED_SECONDS = {"process": 5.0, "docker": 8.0}


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """A process for as long as the block lasts."""
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, cwd=log.parent, stdout=file, stderr=file)
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)


def wait_for(server: httpx.Client) -> None:
    """Until the server answers."""
    for _ in range(300):
        try:
            if server.get("/health").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit("the Prefect server does not answer")


def one_run(server: httpx.Client, deployment: str, folder: Path, number: int) -> dict[str, float]:
    """Asks for a stage on a row that nobody has seen, and gives the seconds of its parts."""
    rows = folder / f"rows-{number}.jsonl"
    rows.write_text(json.dumps({"query": f"q {number} {time.time()}", "response": "r"}) + "\n")
    dataset = open_store().take_in(rows).digest
    body = {"parameters": {"artifacts": {"dataset": dataset}, "split_dataset_ratio": 0}}
    while (asked := server.post(f"/deployments/{deployment}/create_flow_run", json=body)).status_code == 503:
        time.sleep(0.5)  # SQLite was locked; Prefect's own clients try again, too
    run: dict[str, Any] = asked.raise_for_status().json()
    while (state := server.get(f"/flow_runs/{run['id']}").json())["state_type"] not in (
        "COMPLETED",
        "FAILED",
        "CRASHED",
    ):
        time.sleep(0.25)
    if state["state_type"] != "COMPLETED":
        raise SystemExit(f"a run ended as {state['state_name']}: {state['state']['message']}")
    states = server.get("/flow_run_states/", params={"flow_run_id": run["id"]}).json()
    times = {each["type"]: datetime.fromisoformat(each["timestamp"]) for each in reversed(states)}
    (stage,) = open_store().run(run["id"])["stages"]
    (reference,) = [each for each in open_store().artifacts() if each.digest == stage["artifact"]["digest"]]
    (manifest,) = open_store().manifests(reference)
    marks = [times["SCHEDULED"], times["PENDING"], times["RUNNING"], datetime.fromisoformat(manifest.started)]
    return {name: (b - a).total_seconds() for name, (a, b) in zip(PARTS, pairwise(marks), strict=True)}


def set_up(options: argparse.Namespace, environment: dict[str, str], folder: Path) -> None:
    """The pool and the deployments, for a store in the folder."""
    variables: dict[str, Any] = {"store": environment["MARTLET_STORE"]}
    if options.pool_type == "docker":
        variables = {
            "image": options.image,
            "image_pull_policy": "Never",
            "volumes": [f"{environment['MARTLET_STORE']}:/store"],
            "user": f"{os.getuid()}:{os.getgid()}",
        }
    words = [word for name, value in variables.items() for word in ("--variable", f"{name}={json.dumps(value)}")]
    command = [sys.executable, "-m", "flows.cli", "setup", "--workers", options.pool_type, *words]
    subprocess.run(command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, check=True)


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """All runs, one after the other."""
    url = f"http://127.0.0.1:{free_port()}/api"
    own = {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "MARTLET_STORE": str(folder / "store"),
    }
    os.environ.update(own)
    (folder / "store").mkdir()
    environment = dict(os.environ)
    port = url.rpartition(":")[2].removesuffix("/api")
    prefect = [str(interpreter("worker" if options.pool_type == "docker" else "core")), "-m", "prefect"]
    with ExitStack() as stack:
        server = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
        stack.enter_context(running(server, environment, folder / "server.log"))
        client = stack.enter_context(httpx.Client(base_url=url, timeout=30))
        wait_for(client)
        set_up(options, environment, folder)
        worker = [*prefect, "worker", "start", "--pool", "martlet", "--type", options.pool_type]
        stack.enter_context(running(worker, environment, folder / "worker.log"))
        deployment = client.get("/deployments/name/preprocess/cpu").json()["id"]
        one_run(client, deployment, folder, 0)  # the first one waits for the worker, too
        return [one_run(client, deployment, folder, number) for number in range(1, options.rounds + 1)]


def main() -> None:
    """Prints medians and 90th percentiles."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pool-type", choices=sorted(ALLOWED_SECONDS), required=True)
    parser.add_argument("--image", default="martlet-core", help="for docker: an image of this machine")
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="martlet-dispatch-", ignore_cleanup_errors=True) as name:
        found = measure(options, Path(name))
    columns = {part: [each[part] for each in found] for part in PARTS}
    columns["all"] = [sum(each.values()) for each in found]
    for part, seconds in columns.items():
        p90 = statistics.quantiles(seconds, n=10)[-1] if len(seconds) > 1 else seconds[0]
        print(f"{part:<6} median {statistics.median(seconds):5.2f} s  p90 {p90:5.2f} s  worst {max(seconds):5.2f} s")
    allowed = ALLOWED_SECONDS[options.pool_type]
    print(f"{options.pool_type}: {sum(each <= allowed for each in columns['all'])} of {len(found)} within {allowed} s")


if __name__ == "__main__":
    main()

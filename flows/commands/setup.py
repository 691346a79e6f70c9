"""`martlet setup`: the work pool, its queues, the deployments of prefect.yaml and automations, on the server in use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stages.errors import ArgumentsError, MissingPackage, StageFailed

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

__all__ = ["main"]

KINDS = ("process", "docker", "kubernetes")

USAGE = """usage: martlet setup [--workers process|docker|kubernetes] [--gpus N] [--variable NAME=VALUE …]
       martlet setup --check

Makes on the Prefect server at PREFECT_API_URL: the work pool `martlet` with its queues cpu and gpu, the deployments of
prefect.yaml, and automations that end lost runs and tell of failures. Safe to repeat. Runs started from it work in the
folder that you call it in.

  --workers KIND          what the pool's workers start a run in (default: what the pool has, else process)
  --gpus N                how many runs may be on the queue gpu at once (default: what the queue has, else 1);
                          containers are given the GPUs, and none with 0
  --variable NAME=VALUE   a default of the pool's template, such as image=…, store=s3://bucket/prefix or
                          networks='["martlet"]', or none again: store=null; may be repeated
  --check                 makes nothing: says what is missing on the server, and asks a worker of each queue

MARTLET_NOTIFY_WEBHOOK (a URL) and MARTLET_NOTIFY_EMAIL (mailtos://user:password@host?to=…) hear of failures."""


@dataclass
class Options:
    """The command line."""

    workers: str | None = None
    gpus: int | None = None
    variables: dict[str, Any] = field(default_factory=dict)
    check: bool = False


def main(_command: str, argv: list[str]) -> int:
    """Creates what is missing, updates what is there, and says which."""
    if any(word in ("-h", "--help") for word in argv):
        print(USAGE)
        return 0
    options = _read(argv)
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        raise MissingPackage(
            "no Prefect server is in use. Start one (prefect server start) and "
            "set PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
        if problem is not None:
            raise StageFailed(f"no Prefect server answers at {url} (PREFECT_API_URL): {problem}")
        return _check(client) if options.check else _set_up(client, options)


def _read(argv: list[str]) -> Options:
    options = Options()
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if word == "--check":
            options.check = True
            continue
        if name not in ("--workers", "--gpus", "--variable"):
            raise ArgumentsError(f"martlet setup takes no {word}. See martlet setup --help")
        value = value if equals else next(words, "")
        if not value:
            raise ArgumentsError(f"{name} needs a value. See martlet setup --help")
        _take(options, name, value)
    if options.check and len(argv) > 1:
        raise ArgumentsError("--check makes nothing, and takes no other option")
    return options


def _take(options: Options, name: str, value: str) -> None:
    if name == "--workers":
        if value not in KINDS:
            raise ArgumentsError(f"--workers {value}: choose from {', '.join(KINDS)}")
        options.workers = value
    elif name == "--gpus":
        if not value.isdecimal():
            raise ArgumentsError(f"--gpus {value} is no number of GPUs")
        options.gpus = int(value)
    else:
        key, equals, text = value.partition("=")
        if not equals:
            raise ArgumentsError(f"--variable {value} is not NAME=VALUE")
        try:
            options.variables[key] = json.loads(text)
        except ValueError:
            options.variables[key] = text


def _set_up(client: SyncPrefectClient, options: Options) -> int:
    from flows.server.automations import ensure_automations
    from flows.server.pool import POOL, deploy, ensure_pool, ensure_queue

    kind, done = ensure_pool(client, options.workers, options.variables)
    print(f"work pool {POOL}: {done} ({kind})")
    print(f"work queue cpu: {ensure_queue(client, 'cpu', None)}")
    print(f"work queue gpu: {ensure_queue(client, 'gpu', _limit(client, options.gpus))}")
    for line in deploy(client, kind, options.gpus):
        print(line)
    for line in ensure_automations(client, os.environ):
        print(line)
    print(f"\nStart a worker:  prefect worker start --pool {POOL}{'' if kind == 'process' else f' --type {kind}'}")
    print("Run a flow:      prefect deployment run sft-then-export/local -p model=… -p dataset='[\"…\"]'")
    print("On workers:      prefect deployment run sft-then-export/workers -p model=… -p dataset='[\"…\"]'")
    return 0


def _limit(client: SyncPrefectClient, gpus: int | None) -> int | None:
    """One run per GPU; a queue that is there keeps its limit unless another one is given."""
    from prefect.exceptions import ObjectNotFound

    from flows.server.pool import POOL

    if gpus is not None:
        return max(gpus, 1)
    try:
        client.read_work_queue_by_name("gpu", work_pool_name=POOL)
    except ObjectNotFound:
        return 1
    return None


def _check(client: SyncPrefectClient) -> int:
    """Says of each thing whether it is there; 1 if something is missing."""
    complete = True
    for right, line in _findings(client):
        complete &= right
        print(f"{'ok      ' if right else 'missing '}{line}", flush=True)
    return 0 if complete else 1


def _findings(client: SyncPrefectClient) -> Iterator[tuple[bool, str]]:
    from prefect.exceptions import ObjectNotFound

    from flows.server.automations import AUTOMATIONS
    from flows.server.check import ask
    from flows.server.pool import POOL, QUEUES, declared, deployments
    from flows.server.workers import is_polled, worker_command
    from stages.artifacts.store import open_store

    try:
        pool = client.read_work_pool(POOL)
    except ObjectNotFound:
        yield False, f"work pool {POOL}: run `martlet setup`"
        return
    yield True, f"work pool {POOL} ({pool.type})"
    if pool.type != "process":
        yield _image(pool.base_job_template)
    there = deployments(client)
    lacking = [name for name in declared() if name not in there]
    yield (
        not lacking,
        f"deployments: {', '.join(lacking) or len(declared())}{': run `martlet setup`' if lacking else ''}",
    )
    for name in AUTOMATIONS:
        found = client.read_automations_by_name(name)
        yield bool(found), f"automation {name}{'' if found else ': run `martlet setup`'}"
    store = open_store()
    yield True, f"store {store.location} (as this machine sees it)"
    for name in QUEUES:
        try:
            queue = client.read_work_queue_by_name(name, work_pool_name=POOL)
        except ObjectNotFound:
            yield False, f"work queue {name}: run `martlet setup`"
            continue
        yield True, f"work queue {name}, {queue.concurrency_limit or 'any number'} at a time"
        if not is_polled(queue):
            yield False, f"worker of {name}: {worker_command(POOL, name)}"
        elif f"check/{name}" in there:
            yield from ask(client, name, store)


def _image(base_job_template: dict[str, Any]) -> tuple[bool, str]:
    """Whether the pool's image is on this machine; elsewhere only a worker can tell."""
    image = str(base_job_template["variables"]["properties"]["image"].get("default"))
    docker = shutil.which("docker")
    if docker is None:
        return True, f"image {image} (no Docker here to look with)"
    done = subprocess.run([docker, "image", "inspect", image], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return True, f"image {image}"
    return False, f"image {image} on this machine: make images, or --variable image=…"

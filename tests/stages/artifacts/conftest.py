"""A bucket of its own for each test, on one S3 server for all of them."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from stages.artifacts.remote_store import RemoteStore
from stages.artifacts.store import open_store

SERVER = Path(__file__).with_name("s3_server.py")


@dataclass(frozen=True)
class Asked:
    """A request that the server has answered."""

    client: str
    method: str
    path: str
    received: int
    sent: int


@dataclass
class Server:
    """The S3 server."""

    url: str
    log: Path
    process: subprocess.Popen[str]

    def asked(self, part: str = "") -> list[Asked]:
        """The requests so far whose path has `part` in it."""
        found = []
        for line in self.log.read_text().splitlines():
            client, method, path, received, sent = line.split(" ")
            if part in path:
                found.append(Asked(client, method, path, int(received), int(sent)))
        return found


def start_server(log: Path, host: str = "127.0.0.1", port: int = 0, prefix: tuple[str, ...] = ()) -> Server:
    """Starts one; `prefix` is put before its command line."""
    command = [*prefix, sys.executable, str(SERVER), host, str(port), str(log)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    return Server(f"http://{host}:{int(process.stdout.readline())}", log, process)


def stop_server(server: Server) -> None:
    """Ends it."""
    server.process.kill()
    server.process.communicate()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for the session."""
    server = start_server(tmp_path_factory.mktemp("s3") / "requests")
    yield server
    stop_server(server)


@dataclass
class Bucket:
    """A bucket, looked at past the store."""

    name: str
    client: Any
    server: Server

    @property
    def location(self) -> str:
        """A store in it."""
        return f"s3://{self.name}/team/store"

    def names(self, folder: str = "") -> list[str]:
        """The objects of the store in a folder."""
        found = self.client.list_objects_v2(Bucket=self.name, Prefix=f"team/store/{folder}")
        return [entry["Key"].removeprefix("team/store/") for entry in found.get("Contents", ())]

    def read(self, name: str) -> bytes:
        """An object's bytes."""
        data: bytes = self.client.get_object(Bucket=self.name, Key=f"team/store/{name}")["Body"].read()
        return data

    def write(self, name: str, data: bytes) -> None:
        """Puts other bytes there."""
        self.client.put_object(Bucket=self.name, Key=f"team/store/{name}", Body=data)

    def remove(self, name: str) -> None:
        """Takes an object away."""
        self.client.delete_object(Bucket=self.name, Key=f"team/store/{name}")

    def asked(self, part: str = "") -> list[Asked]:
        """The requests about it so far."""
        return [asked for asked in self.server.asked(part) if asked.path.startswith(f"/{self.name}")]


def credentials(url: str) -> dict[str, str]:
    """What a user sets."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "martlet-test",
        "AWS_SECRET_ACCESS_KEY": "s3cr3t-of-the-test",
        "AWS_REGION": "us-east-1",
    }


@pytest.fixture
def bucket(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket; the environment names its server."""
    import boto3

    for name, value in credentials(s3_server.url).items():
        monkeypatch.setenv(name, value)
    logging.getLogger("botocore").setLevel("WARNING")
    client = boto3.client("s3", endpoint_url=s3_server.url)
    name = f"martlet-{uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    return Bucket(name, client, s3_server)


@pytest.fixture
def host(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], RemoteStore]:
    """`host("a")` opens the bucket's store with a cache that only the host of that name has."""

    def open_on(name: str) -> RemoteStore:
        monkeypatch.setenv("MARTLET_CACHE", str(tmp_path / "hosts" / name))
        store = open_store(bucket.location)
        assert isinstance(store, RemoteStore)
        return store

    return open_on

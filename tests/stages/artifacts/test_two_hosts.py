"""Two hosts that share nothing but an S3 server: network namespaces that reach only it, and separate disks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stages.artifacts.tree import matches
from stages.tokenize import TOKENIZER_FILES

from .conftest import Asked, Bucket, Server, credentials, start_server, stop_server

PROJECT = Path(__file__).resolve().parents[3]
PORT = 5123
TRAINING = ["--max_steps", "100", "--save_steps", "5", "--save_total_limit", "2", "--lora_rank", "4"]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@dataclass
class Host:
    """One of the two.

    Attributes:
        name: of its namespace.
        address: its own, as the server's log has it.
        server: the server's, as it sees it.
        cable: the server's end of its cable, and the namespace that it is in.
        disk: its folder; a mount namespace hides those of the others.
        hidden: those.
    """

    name: str
    address: str
    server: str
    cable: tuple[str, str]
    disk: Path
    hidden: Path

    def plug(self, state: str) -> None:
        """Pulls its cable (`down`), or puts it back (`up`)."""
        namespace, cable = self.cable
        ip("-n", namespace, "link", "set", cable, state)

    def command(self, words: list[str]) -> list[str]:
        """A command line on this host."""
        hide = f'mount -t tmpfs none "{self.hidden}" && exec "$@"'
        return ["ip", "netns", "exec", self.name, "unshare", "--mount", "sh", "-c", hide, "sh", *words]

    def start(self, words: list[str], location: str) -> subprocess.Popen[str]:
        """Starts one."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.disk / "home"),
            "TMPDIR": str(self.disk / "tmp"),
            "MARTLET_CACHE": str(self.disk / "cache"),
            "MARTLET_STORE": location,
            "PYTHONPATH": str(PROJECT),
            "OMP_NUM_THREADS": "2",
            "OMP_WAIT_POLICY": "PASSIVE",
            **credentials(f"http://{self.server}:{PORT}"),
        }
        return subprocess.Popen(
            self.command([sys.executable, *words]),
            env=environment,
            cwd=self.disk,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, words: list[str], location: str) -> str:
        """Runs one to its end and answers what it printed."""
        process = self.start(words, location)
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        return out

    def stage(self, name: str, *words: str, location: str) -> dict[str, Any]:
        """Runs a stage by `python -m stages` and answers its result."""
        out = self.run(["-m", "stages", name, *words, "--json"], location)
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
        return result


@dataclass
class World:
    """Both hosts, and a bucket between them."""

    a: Host
    b: Host
    bucket: Bucket

    def asked_by(self, host: Host, since: int = 0) -> list[Asked]:
        """What a host has asked the server for, but for the first requests."""
        return [asked for asked in self.bucket.asked() if asked.client == host.address][since:]

    def pulled_by(self, host: Host, since: int = 0) -> list[Asked]:
        """The blobs that it got."""
        return [asked for asked in self.asked_by(host, since) if asked.method == "GET" and "/blobs/" in asked.path]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Namespaces of the server and of two hosts, a cable from the server to each of them and to the test."""
    if os.geteuid() != 0:
        pytest.skip("only root may make network namespaces")
    if not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("network namespaces need ip (iproute2) and unshare (util-linux)")
    number = os.getpid() % 100_000
    names = [f"martlet{number}{letter}" for letter in "sab"]
    server: Server | None = None
    try:
        try:
            for name in names:
                ip("netns", "add", name)
                ip("-n", name, "link", "set", "lo", "up")
            for end, subnet in [("a", 1), ("b", 2), ("t", 3)]:
                cable, other = f"ms{number}{end}", f"mc{number}{end}"
                ip("link", "add", cable, "type", "veth", "peer", "name", other)
                place = [] if end == "t" else ["-n", names["sab".index(end)]]
                ip("link", "set", cable, "netns", names[0])
                if place:
                    ip("link", "set", other, "netns", place[1])
                ip("-n", names[0], "address", "add", f"10.213.{subnet}.1/30", "dev", cable)
                ip("-n", names[0], "link", "set", cable, "up")
                ip(*place, "address", "add", f"10.213.{subnet}.2/30", "dev", other)
                ip(*place, "link", "set", other, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine has no network namespaces: {error.stderr.strip()}")
        server = start_server(tmp_path / "requests", "0.0.0.0", PORT, ("ip", "netns", "exec", names[0]))
        yield make_world(server, names, tmp_path)
    finally:
        if server is not None:
            stop_server(server)
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def make_world(server: Server, names: list[str], folder: Path) -> World:
    """Disks and a bucket."""
    import boto3

    hosts = []
    for number, letter in enumerate("ab", start=1):
        disk = folder / f"disk-{letter}"
        for name in ("home", "tmp", "cache"):
            (disk / name).mkdir(parents=True)
        hidden = folder / f"disk-{'b' if letter == 'a' else 'a'}"
        cable = (names[0], f"ms{os.getpid() % 100_000}{letter}")
        hosts.append(Host(names[number], f"10.213.{number}.2", f"10.213.{number}.1", cable, disk, hidden))
    keys = credentials("")
    client = boto3.client(
        "s3",
        endpoint_url=f"http://10.213.3.1:{PORT}",
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="between")
    return World(hosts[0], hosts[1], Bucket("between", client, server))


def wait_for_checkpoint(world: World, process: subprocess.Popen[str]) -> None:
    """Until host a has uploaded a checkpoint to its end."""
    deadline = time.monotonic() + 120
    while not [one for one in world.asked_by(world.a) if one.method == "PUT" and "work.json" in one.path]:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_two_hosts(world: World, tiny_model: Path, alpaca_file: Path) -> None:
    a, b, location = world.a, world.b, world.bucket.location
    shutil.copytree(tiny_model, a.disk / "model")
    shutil.copy(alpaca_file, a.disk / "rows.jsonl")

    # They reach the server and nothing else, and see none of each other's files.
    look = (
        "import os, socket, sys; print(sorted(os.listdir(sys.argv[1])), socket.create_connection((sys.argv[2], 5123)))"
    )
    assert b.run(["-c", look, str(a.disk), b.server], location).startswith("[] ")
    for host, other in [(a, b), (b, a)]:
        for address in (other.address, "10.213.3.2"):
            code = "import socket, sys; sys.exit(socket.socket().connect_ex((sys.argv[1], 5123)) != 101)"
            host.run(["-c", code, address], location)

    model = a.stage("download", "--model", str(a.disk / "model"), location=location)
    rows = a.stage("preprocess", "--dataset", str(a.disk / "rows.jsonl"), location=location)
    inputs = ["--input", f"model={model['artifact']['digest']}"]

    # b tokenizes what a has made, by digest, and pulls the tokenizer and the rows but no weights.
    tokenizing = ["tokenize", *inputs, "--input", f"dataset={rows['artifact']['digest']}", "--max_length", "64"]
    tokens = b.stage(*tokenizing, location=location)
    assert tokens["status"] == "ran"
    trees = [json.loads(world.bucket.read(f"trees/{one['artifact']['digest'][7:]}.json")) for one in (model, rows)]
    read = [file for file in trees[0]["files"] if matches(file["path"], TOKENIZER_FILES)]
    read += [file for file in trees[1]["files"] if matches(file["path"], ["*.parquet"])]
    pulled = world.pulled_by(b)
    wanted = {f"/between/team/store/blobs/{file['sha256'][:2]}/{file['sha256'][2:]}": file["size"] for file in read}
    assert {one.path: one.sent for one in pulled} == wanted
    assert len(pulled) == len(wanted)
    whole = sum(file["size"] for tree in trees for file in tree["files"])
    assert sum(wanted.values()) < whole / 10
    assert any(file["path"].endswith(".safetensors") and file not in read for file in trees[0]["files"])

    # What b has made is a hit on a, which pulls nothing.
    again = a.stage(*tokenizing, location=location)
    assert (again["status"], again["artifact"]) == ("cached", tokens["artifact"])
    assert world.pulled_by(a) == []

    # a is killed in mid-training; b goes on from the last checkpoint that a has uploaded.
    training = ["train", *inputs, "--input", f"tokens={tokens['artifact']['digest']}", *TRAINING]
    process = a.start(["-m", "stages", *training], location)
    wait_for_checkpoint(world, process)
    process.kill()
    process.communicate()
    assert world.bucket.names("leases")
    trained = b.stage(*training, location=location)
    assert trained["status"] == "resumed"
    for folder in ("leases", "scratch"):
        assert world.bucket.names(folder) == []

    again = a.stage(*training, location=location)
    assert (again["status"], again["artifact"]) == ("cached", trained["artifact"])

    # And the commands read the store from either host.
    artifacts = ["-c", "import sys; from flows.cli import main; sys.exit(main(sys.argv[1:]))", "artifacts"]
    listed = json.loads(b.run([*artifacts, "list", "adapter", "--json"], location))
    assert [record["digest"] for record in listed] == [trained["artifact"]["digest"]]
    assert json.loads(a.run([*artifacts, "verify", "--json"], location))["ok"]
    lineage = json.loads(b.run([*artifacts, "lineage", listed[0]["digest"][:19], "--json"], location))
    assert {node["stage"] for node in lineage} == {"train", "tokenize", "download", "preprocess", None}
    b.run([*artifacts, "export", listed[0]["digest"], str(b.disk / "exported")], location)
    assert (b.disk / "exported" / "adapter_model.safetensors").is_file()


REPEAT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tiny import REPEAT, TinyArguments
from stages.artifacts.store import open_store
from stages.errors import MartletError
from stages.run import run_stage
store = open_store()
store.lease_seconds = 2.0
Path("text.txt").write_text("the same on both")
arguments, inputs = TinyArguments(pause_seconds=0.5), {"text": Path("text.txt")}
try:
    result = run_stage(REPEAT, arguments, inputs, store=store, on_wait=lambda who: print(who, flush=True))
    print(json.dumps(result.to_json()))
except MartletError as error:
    print(json.dumps({"status": "failed", "error": str(error)}))
"""


@pytest.mark.slow
def test_a_host_that_was_cut_off_does_not_commit_over_the_one_that_took_over(world: World, tiny: ModuleType) -> None:
    """Its cable is pulled while it computes, for longer than its lease; both clocks may be what they are."""
    a, b, location = world.a, world.b, world.bucket.location
    words = ["-c", REPEAT, str(Path(str(tiny.__file__)).parent)]
    first = a.start(words, location)
    while not world.bucket.names("leases"):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    a.plug("down")
    second = b.run(words, location).splitlines()
    assert second[0].startswith("process ")
    a.plug("up")
    late = json.loads(first.communicate(timeout=120)[0].splitlines()[-1])
    assert late["status"] == "failed"
    assert "the lease on" in late["error"]
    assert "was lost" in late["error"]
    done = json.loads(second[-1])
    assert done["status"] == "ran"
    again = json.loads(a.run(words, location).splitlines()[-1])
    assert (again["status"], again["artifact"]) == ("cached", done["artifact"])
    assert world.bucket.names("leases") == []

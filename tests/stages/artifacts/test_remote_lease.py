"""Leases in a bucket: one holder, waiting, dead holders, holders that were cut off."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stages.artifacts.address import parse_address
from stages.artifacts.objects import Objects
from stages.artifacts.remote_lease import Held, remote_lease
from stages.artifacts.remote_store import RemoteStore
from stages.errors import Interrupted, StoreError
from stages.run import run_stage

from .conftest import Bucket

Host = Callable[[str], RemoteStore]

HOLD = """
import sys, time
from stages.artifacts.address import parse_address
from stages.artifacts.objects import Objects
from stages.artifacts.remote_lease import Held, remote_lease
address = parse_address(sys.argv[1])
with remote_lease(Held(Objects(address.bucket, address.prefix), "key", sys.argv[2], float(sys.argv[3]))):
    print("held", flush=True)
    time.sleep(60)
"""


def held(bucket: Bucket, home: str, seconds: float = 20.0) -> Held:
    address = parse_address(bucket.location)
    return Held(Objects(address.bucket, address.prefix), "key", home, seconds)


def hold(bucket: Bucket, home: str, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, bucket.location, home, str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_hosts_exclude_each_other(bucket: Bucket) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(home: str) -> None:
        for _ in range(3):
            with remote_lease(held(bucket, home)):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.01)
                inside.pop()

    threads = [threading.Thread(target=work, args=(home,)) for home in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 12
    assert bucket.names("leases") == []


def test_a_holder_that_lives_is_waited_for(bucket: Bucket) -> None:
    """For longer than a lease lasts: it is renewed."""
    told: list[str] = []
    release = threading.Event()

    def work() -> None:
        with remote_lease(held(bucket, "a", 0.8)):
            release.wait(30)

    holder = threading.Thread(target=work)
    holder.start()
    while not bucket.names("leases"):
        time.sleep(0.02)
    began = time.monotonic()
    threading.Timer(3.0, release.set).start()
    with remote_lease(held(bucket, "b", 0.8), told.append):
        waited = time.monotonic() - began
    holder.join()
    assert 3.0 <= waited < 6.0
    assert len(told) == 1
    assert told[0].startswith("process ")


def test_a_dead_holder_on_another_host_is_waited_for_no_longer_than_its_lease(bucket: Bucket) -> None:
    holder = hold(bucket, "a", 2.0)
    told: list[str] = []
    holder.kill()
    holder.communicate()
    began = time.monotonic()
    with remote_lease(held(bucket, "b"), told.append) as lease:
        waited = time.monotonic() - began
        lease.renew()
    assert 2.0 <= waited < 5.0
    assert told[0].startswith(f"process {holder.pid} on ")
    assert bucket.names("leases") == []


def test_a_dead_holder_on_the_same_host_is_not_waited_for(host: Host, bucket: Bucket) -> None:
    """The lock in its cache folder says that it is gone."""
    store = host("a")
    home = (store.local.root / "home").read_text()
    holder = hold(bucket, home, 60.0)
    holder.kill()
    holder.communicate()
    began = time.monotonic()
    with store.lease("key"):
        assert time.monotonic() - began < 3.0


def test_waiting_ends_when_the_run_is_told_to_stop(bucket: Bucket) -> None:
    with remote_lease(held(bucket, "a")):
        began = time.monotonic()
        with (
            pytest.raises(Interrupted, match="stopped while waiting"),
            remote_lease(held(bucket, "b"), stop_requested=lambda: time.monotonic() - began > 0.5),
        ):
            pass
        assert time.monotonic() - began < 3.0
        assert bucket.names("leases") == ["leases/key"]


def test_a_lease_that_cannot_be_read_runs_out_like_any_other(bucket: Bucket) -> None:
    bucket.write("leases/key", b"\xff not JSON")
    told: list[str] = []
    with remote_lease(held(bucket, "b", 1.0), told.append):
        pass
    assert told == ["another process"]


def test_a_holder_that_lost_its_lease_notices(bucket: Bucket) -> None:
    first, second = held(bucket, "a"), held(bucket, "b")
    with remote_lease(first):
        tag = first.objects.tag("leases/key")
        assert second.take(tag)
        with pytest.raises(StoreError, match="the lease on key was lost"):
            first.renew()
    second.renew()  # and what the other has is left alone
    second.release()
    assert bucket.names("leases") == []


def test_a_write_whose_answer_was_lost_is_recognised(bucket: Bucket) -> None:
    lease = held(bucket, "a")
    assert lease.take(None)
    tag = lease.objects.tag("leases/key")
    assert tag is not None
    lease.renew()
    lease._tag = tag  # as if the answer had not come, and the request was sent again
    lease.renew()
    lease.release()
    assert bucket.names("leases") == []


def test_a_result_is_not_committed_without_the_lease(
    host: Host, bucket: Bucket, tiny: ModuleType, text_file: Path
) -> None:
    from dataclasses import replace

    store, other = host("a"), host("b")

    def robbed(arguments: Any, inputs: Any, out: Path, context: Any) -> dict[str, int]:
        (name,) = bucket.names("leases")
        tag = other.objects.tag(name)
        assert Held(other.objects, name.removeprefix("leases/"), "b").take(tag)
        (out / "x.txt").write_text("x")
        return {}

    stage = replace(tiny.REPEAT, name="robbed", function=robbed)
    with pytest.raises(StoreError, match=r"the lease on .* was lost: .* run it again"):
        run_stage(stage, tiny.TinyArguments(), {"text": text_file}, store=store)
    assert bucket.names("actions") == []
    assert bucket.names("manifests") == []
    assert len(bucket.names("leases")) == 1


def test_two_hosts_compute_one_key_once(host: Host, tiny: ModuleType, text_file: Path, tmp_path: Path) -> None:
    stores = [host("a"), host("b")]
    arguments = tiny.TinyArguments(calls=str(tmp_path / "calls"), pause_seconds=0.1)
    statuses: list[str] = []

    def work(store: RemoteStore) -> None:
        statuses.append(run_stage(tiny.REPEAT, arguments, {"text": text_file}, store=store).status)

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == ["cached", "ran"]
    assert len((tmp_path / "calls").read_text().splitlines()) == 1

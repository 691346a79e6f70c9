"""Leases between threads and between processes, and what a dead holder leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stages.artifacts.lease import lease
from stages.artifacts.store import LocalStore
from stages.errors import Interrupted

HOLD = """
import sys, time
from pathlib import Path
from stages.artifacts.lease import lease
with lease(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""

COUNT = """
import sys, time
from pathlib import Path
from stages.artifacts.lease import lease
path, counter = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(int(sys.argv[3])):
    with lease(path):
        value = int(counter.read_text())
        time.sleep(0.001)
        counter.write_text(str(value + 1))
"""


def hold(path: Path, seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_lease_is_free_as_soon_as_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "key"
    holder = hold(path, 60)
    waited: list[str] = []
    killer = threading.Timer(0.3, holder.kill)
    killer.start()
    with lease(path, waited.append):
        pass
    end(holder)
    assert waited == [f"process {holder.pid} on {os.uname().nodename}"]


def test_nobody_waits_for_a_free_lease(tmp_path: Path) -> None:
    waited: list[str] = []
    for _ in range(2):
        with lease(tmp_path / "key", waited.append):
            pass
    assert waited == []
    assert not (tmp_path / "key").exists()


def test_waiting_ends_when_the_run_is_told_to_stop(tmp_path: Path) -> None:
    holder = hold(tmp_path / "key", 60)
    began = time.monotonic()
    with (
        pytest.raises(Interrupted, match="stopped while waiting"),
        lease(tmp_path / "key", stop_requested=lambda: time.monotonic() - began > 0.2),
    ):
        pass
    end(holder)


def test_threads_exclude_each_other(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(5):
            with lease(tmp_path / "key"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 20
    assert max(most) == 1


def test_processes_exclude_each_other(tmp_path: Path) -> None:
    """Also where the lock file is removed and made again between two holders."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    command = [sys.executable, "-c", COUNT, str(tmp_path / "key"), str(counter), "40"]
    for process in [subprocess.Popen(command) for _ in range(4)]:
        assert process.wait() == 0
    assert counter.read_text() == "160"


def test_different_keys_do_not_wait(store: LocalStore) -> None:
    with store.lease("a" * 64), store.lease("b" * 64):
        pass

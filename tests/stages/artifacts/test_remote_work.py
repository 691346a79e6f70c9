"""Checkpoints on their way from one host to another."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stages.artifacts.remote_store import RemoteStore
from stages.context import Context
from stages.errors import DataError, Interrupted, StageFailed
from stages.run import plan_stage, run_stage

from .conftest import Bucket

Host = Callable[[str], RemoteStore]
KEY = "ab" * 32


def content(store: RemoteStore, key: str = KEY) -> dict[str, str]:
    folder = store.scratch_path(key)
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "kept.json")
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def checkpoint(scratch: Path, step: int, text: str = "") -> Path:
    path = scratch / "work" / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights").write_text(text or f"weights {step}")
    (path / "config").write_text("the same in all")
    return path


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def uploads(bucket: Bucket) -> int:
    return len([asked for asked in bucket.asked("/scratch/") if asked.method == "PUT"])


def test_a_checkpoint_reaches_another_host(host: Host, bucket: Bucket) -> None:
    store = host("a")
    with store.lease(KEY):
        scratch = store.scratch(KEY)
        first = checkpoint(scratch, 1)
        store.keep_work(KEY, [first])
        wait_for(lambda: bucket.names(f"scratch/{KEY}/work.json"))
        (scratch / "work" / "checkpoint-2").mkdir()  # only begun
        (scratch / "work" / "checkpoint-2" / "weights").write_text("half")
    other = host("b")
    assert other.has_kept_work(KEY)
    with other.lease(KEY):
        other.scratch(KEY)
        assert content(other) == {
            "work/checkpoint-1/weights": "weights 1",
            "work/checkpoint-1/config": "the same in all",
        }


def test_only_what_is_needed_stays(host: Host, bucket: Bucket) -> None:
    """And files that are the same in two checkpoints are sent once."""
    store = host("a")
    with store.lease(KEY):
        scratch = store.scratch(KEY)
        store.keep_work(KEY, [checkpoint(scratch, 1)])
        wait_for(lambda: bucket.names(f"scratch/{KEY}/work.json"))
        before = uploads(bucket)
        store.keep_work(KEY, [checkpoint(scratch, 2)])
    assert uploads(bucket) == before + 2
    record = json.loads(bucket.read(f"scratch/{KEY}/work.json"))
    assert {file["path"] for file in record["files"]} == {"work/checkpoint-2/weights", "work/checkpoint-2/config"}
    assert len(bucket.names(f"scratch/{KEY}/")) == 3


def test_a_checkpoint_that_is_removed_at_once_is_kept_all_the_same(host: Host, bucket: Bucket) -> None:
    import shutil

    store = host("a")
    with store.lease(KEY):
        scratch = store.scratch(KEY)
        path = checkpoint(scratch, 1)
        store.keep_work(KEY, [path])
        shutil.rmtree(path)
    other = host("b")
    with other.lease(KEY):
        other.scratch(KEY)
    assert content(other)["work/checkpoint-1/weights"] == "weights 1"


def test_logs_are_kept_as_they_are_at_the_moment(host: Host) -> None:
    store = host("a")
    with store.lease(KEY):
        scratch = store.scratch(KEY)
        (scratch / "attachments").mkdir()
        log = scratch / "attachments" / "logging.jsonl"
        log.write_text("1\n")
        store.keep_work(KEY, [checkpoint(scratch, 1)], scratch / "attachments")
        with log.open("a") as file:
            file.write("2\n")
    other = host("b")
    with other.lease(KEY):
        other.scratch(KEY)
    assert content(other)["attachments/logging.jsonl"] == "1\n"


def test_the_newest_state_wins(host: Host) -> None:
    """The first leaves step 1, the second step 2: the first must not go on from its own."""
    for name, step in [("a", 1), ("b", 2)]:
        store = host(name)
        with store.lease(KEY):
            store.keep_work(KEY, [checkpoint(store.scratch(KEY), step)])
    store = host("a")
    assert "work/checkpoint-1/weights" in content(store)
    with store.lease(KEY):
        store.scratch(KEY)
    assert set(content(store)) == {"work/checkpoint-2/weights", "work/checkpoint-2/config"}


def test_what_a_host_did_after_it_was_last_kept_is_its_own_to_go_on_from(host: Host) -> None:
    store = host("a")
    with store.lease(KEY):
        store.keep_work(KEY, [checkpoint(store.scratch(KEY), 1)])
    checkpoint(store.scratch_path(KEY), 2)
    store = host("a")
    with store.lease(KEY):
        store.scratch(KEY)
    assert "work/checkpoint-2/weights" in content(store)


def test_work_that_was_ended_elsewhere_is_not_gone_on_from(host: Host, bucket: Bucket) -> None:
    store = host("a")
    with store.lease(KEY):
        store.keep_work(KEY, [checkpoint(store.scratch(KEY), 1)])
    other = host("b")
    with other.lease(KEY):
        other.scratch(KEY)
        other.discard_scratch(KEY)
    assert bucket.names("scratch") == []
    store = host("a")
    with store.lease(KEY):
        store.scratch(KEY)
    assert content(store) == {}


def test_damaged_work_is_passed_over(host: Host, bucket: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    """And what is kept next takes its place."""
    store = host("a")
    with store.lease(KEY):
        store.keep_work(KEY, [checkpoint(store.scratch(KEY), 1)])
    name = f"scratch/{KEY}/work.json"
    whole = bucket.read(name)
    record = json.loads(whole)
    unsafe = {**record, "files": [{**record["files"][0], "path": "../../outside"}]}
    file = f"scratch/{KEY}/{record['files'][0]['sha256']}"
    other = host("b")
    for index, content_of_file, message in [
        (whole, b"other", "of the kept work of abababababab is not what it was"),
        (json.dumps(unsafe).encode(), bucket.read(file), "unsafe path"),
        (b"{", b"", "the list of the kept work of abababababab is damaged"),
    ]:
        bucket.write(name, index)
        bucket.write(file, content_of_file)
        with other.lease(KEY):
            other.scratch(KEY)
        assert content(other) == {}
        assert message in caplog.text
    with other.lease(KEY):
        other.keep_work(KEY, [checkpoint(other.scratch(KEY), 2)])
    last = host("c")
    with last.lease(KEY):
        last.scratch(KEY)
    assert content(last)["work/checkpoint-2/weights"] == "weights 2"


# --- stages ---


@pytest.fixture
def run(tiny: ModuleType, text_file: Path) -> Any:
    def call(store: RemoteStore, stage: Any = tiny.REPEAT, options: dict[str, Any] | None = None, **values: Any) -> Any:
        return run_stage(stage, tiny.TinyArguments(**values), {"text": text_file}, store=store, **(options or {}))

    return call


def test_a_stopped_stage_goes_on_elsewhere(
    run: Any, host: Host, bucket: Bucket, tiny: ModuleType, text_file: Path
) -> None:
    looked: list[int] = []

    def stop() -> bool:
        looked.append(1)
        return len(looked) > 4

    with pytest.raises(Interrupted, match="stopped after step 5"):
        run(host("a"), options={"stop_requested": stop})
    other = host("b")
    planned = plan_stage(tiny.REPEAT, tiny.TinyArguments(), {"text": text_file}, store=other)
    assert planned.status == "resume"
    result = run(other)
    assert (result.status, result.metrics["first_step"]) == ("resumed", 5)
    assert bucket.names("scratch") == []
    assert list((other.local.root / "scratch").iterdir()) == []


def test_a_stage_that_broke_down_goes_on_elsewhere(run: Any, host: Host, tiny: ModuleType) -> None:
    def breaks(arguments: Any, inputs: Any, out: Path, context: Context) -> dict[str, Any]:
        if not (context.scratch / "step").exists():
            (context.scratch / "step").write_text("7")
            raise RuntimeError("the GPU is gone")
        return tiny.repeat(arguments, inputs, out, context)  # type: ignore[no-any-return]

    stage = replace(tiny.REPEAT, name="breaks", function=breaks)
    with pytest.raises(StageFailed, match="the GPU is gone"):
        run(host("a"), stage)
    assert run(host("b"), stage).metrics["first_step"] == 7


def test_nothing_is_kept_of_a_users_error(run: Any, host: Host, bucket: Bucket) -> None:
    with pytest.raises(DataError):
        run(host("a"), fault="user")
    assert bucket.names("scratch") == []
    assert bucket.names("leases") == []


KILLED = """
import sys, time
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tiny import REPEAT, TinyArguments
from stages.artifacts.store import open_store
from stages.run import run_stage

def works(arguments, inputs, out, context):
    for step in range(1, 4):
        folder = context.scratch / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_text(str(step))
        context.checkpointed([folder])
        print(step, flush=True)
        time.sleep(0 if step < 3 else 60)

stage = replace(REPEAT, name="works", function=works, can_resume=lambda scratch: any(scratch.glob("checkpoint-*")))
run_stage(stage, TinyArguments(), {"text": Path(sys.argv[2])}, store=open_store(sys.argv[3]))
"""


@pytest.mark.slow
def test_a_killed_stage_goes_on_elsewhere_from_its_last_checkpoint(
    run: Any, host: Host, bucket: Bucket, tiny: ModuleType, text_file: Path
) -> None:
    host("a")
    folder = str(Path(str(tiny.__file__)).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, folder, str(text_file), bucket.location], stdout=subprocess.PIPE, text=True
    )
    wait_for(lambda: any(b"checkpoint-3" in bucket.read(name) for name in bucket.names("scratch") if "work" in name))
    process.kill()
    process.communicate()

    def goes_on(arguments: Any, inputs: Any, out: Path, context: Context) -> dict[str, Any]:
        found = sorted(path.name for path in context.scratch.iterdir())
        (out / "x.txt").write_text("x")
        return {"found": found}

    stage = replace(tiny.REPEAT, name="works", function=goes_on, can_resume=lambda scratch: True)
    other = host("b")
    other.lease_seconds = 20.0
    began = time.monotonic()
    result = run(other, stage)
    assert (result.status, result.metrics["found"]) == ("resumed", ["checkpoint-3"])
    assert 15 < time.monotonic() - began < 30  # the dead host's lease runs out first
    assert bucket.names("scratch") == []


def test_a_host_that_was_overtaken_does_not_spoil_the_work_of_the_other(host: Host, bucket: Bucket) -> None:
    a, b = host("a"), host("b")
    with a.lease(KEY):
        a.keep_work(KEY, [checkpoint(a.scratch(KEY), 1)])
        wait_for(lambda: bucket.names(f"scratch/{KEY}/work.json"))
        b.scratch(KEY)  # as if a's lease had run out
        b.keep_work(KEY, [checkpoint(b.scratch_path(KEY), 2)])
        b._work[KEY].end()
        a.keep_work(KEY, [checkpoint(a.scratch_path(KEY), 3)])
    record = json.loads(bucket.read(f"scratch/{KEY}/work.json"))
    assert {file["path"] for file in record["files"]} == {"work/checkpoint-2/weights", "work/checkpoint-2/config"}

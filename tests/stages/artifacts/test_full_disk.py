"""A store on a disk that is full, or that may only be read: real file systems, which only root may mount."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from stages.artifacts.store import LocalStore, open_store
from stages.artifacts.verify import verify
from stages.errors import StoreError
from stages.run import plan_stage, run_stage


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(place)]).returncode:
        pytest.skip("needs to mount a file system: run as root on Linux")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # this process keeps its folder in the store locked


def used_bytes(place: Path) -> int:
    status = os.statvfs(place)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


@pytest.mark.parametrize("take", ["put", "take_in"])
def test_no_space_for_a_model(small_disk: Path, tmp_path: Path, take: str) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "small.bin").write_bytes(os.urandom(100_000))
    (model / "large.bin").write_bytes(os.urandom(5_000_000))
    store = LocalStore(small_disk / "store")
    with pytest.raises(StoreError, match=r"no space left for the store .* MB free\): free some, or set") as caught:
        getattr(store, take)(model, "model")
    assert "\n" not in str(caught.value)
    assert list(store.root.rglob("trees/*")) == []
    assert used_bytes(small_disk) < 300_000
    (model / "large.bin").unlink()
    assert store.is_whole(store.put(model, "model"))


def test_no_space_for_a_stage_and_then_some(
    small_disk: Path, tmp_path: Path, text_file: Path, tiny: ModuleType
) -> None:
    """The stage itself writes two megabytes."""
    store = open_store(small_disk / "store")
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 1_800_000)
    with pytest.raises(StoreError, match="no space left for the store"):
        run_stage(tiny.REPEAT, tiny.TinyArguments(), {"text": text_file}, store=store)
    assert verify(store).problems == ()
    filler.unlink()
    result = run_stage(tiny.REPEAT, tiny.TinyArguments(), {"text": text_file}, store=store)
    assert result.status == "resumed"
    assert store.is_whole(result.artifact)


def test_no_space_for_a_copy(small_disk: Path, store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "large.bin").write_bytes(os.urandom(5_000_000))
    ref = store.put(tmp_path / "large.bin", "files")
    with pytest.raises(StoreError, match=f"no space left for the folder {small_disk / 'out'}"):
        store.copy_out(ref, small_disk / "out")
    assert list((small_disk / "out").iterdir()) == []


def test_a_store_that_may_only_be_read(small_disk: Path, text_file: Path, tiny: ModuleType) -> None:
    """Hits and plans go on working; what would be written is refused in one line."""
    command = [sys.executable, str(tiny.__file__), str(small_disk / "store"), str(text_file), "{}"]
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    store = open_store(small_disk / "store")
    text = store.peek(text_file).ref
    assert run_stage(tiny.REPEAT, tiny.TinyArguments(), {"text": text}, store=store).status == "cached"
    assert plan_stage(tiny.REPEAT, tiny.TinyArguments(times=3), {"text": text}, store=store).status == "run"
    with pytest.raises(StoreError, match=r"cannot write to the store .*: Read-only file system") as caught:
        run_stage(tiny.REPEAT, tiny.TinyArguments(times=3), {"text": text}, store=store)
    assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match="cannot write to the store"):
        open_store(small_disk / "another")

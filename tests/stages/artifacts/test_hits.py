"""A hit counts only if every blob is there and is what it was."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.artifacts import blobs as blobs_module
from stages.artifacts.manifest import Manifest
from stages.artifacts.reference import ArtifactRef
from stages.artifacts.store import LocalStore
from stages.errors import CorruptArtifact

KEY = "c" * 64


def commit(store: LocalStore, folder: Path, key: str = KEY) -> ArtifactRef:
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_text("one")
    (folder / "b.txt").write_text("two two")
    ref = store.put(folder, "model")
    body = {"stage": "train", "version": 1, "arguments": {}, "inputs": {}, "libraries": {}}
    store.commit(Manifest(ref, "train", key, body, {}, ended="2026-01-01T00:00:00+00:00"))
    return ref


def blob_of(store: LocalStore, ref: ArtifactRef, path: str) -> Path:
    return next(store.blobs.path(file.sha256) for file in store.tree(ref).files if file.path == path)


def overwrite(blob: Path) -> None:
    time.sleep(0.02)  # older kernels' file times move in steps of some milliseconds
    blob.chmod(0o644)
    blob.write_text("0ne")


def overwrite_and_set_time_back(blob: Path) -> None:
    before = blob.stat()
    overwrite(blob)
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def replace_by_another(blob: Path) -> None:
    before = blob.stat()
    other = blob.with_name("other")
    other.write_text("0ne")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(blob)


def cut_short(blob: Path) -> None:
    blob.chmod(0o644)
    os.truncate(blob, 2)


@pytest.mark.parametrize(
    "damage",
    [Path.unlink, overwrite, overwrite_and_set_time_back, replace_by_another, cut_short],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_blob_is_a_miss_until_it_is_made_again(
    store: LocalStore, tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    ref = commit(store, tmp_path / "out")
    assert store.action(KEY) is not None
    blob = blob_of(store, ref, "a.txt")
    damage(blob)
    assert store.action(KEY) is None
    assert blob.name in caplog.text
    assert not blob.exists()
    with pytest.raises(CorruptArtifact, match=r"is damaged \(a.txt\); run the stage that makes it again"):
        store.check_out(ref, tmp_path / "in")
    assert store.recorded(KEY) is not None
    assert commit(store, tmp_path / "again") == ref
    assert store.action(KEY) is not None


def test_damage_to_what_is_not_read_does_not_matter(store: LocalStore, tmp_path: Path) -> None:
    ref = commit(store, tmp_path / "out")
    overwrite(blob_of(store, ref, "a.txt"))
    os.utime(blob_of(store, ref, "b.txt"), (1, 1))
    store.check_out(ref, tmp_path / "in", reads=("b.txt",))
    assert store.action(KEY) is None


def test_a_damaged_blob_is_kept_for_inspection(store: LocalStore, tmp_path: Path) -> None:
    blob = blob_of(store, commit(store, tmp_path / "out"), "a.txt")
    overwrite(blob)
    store.action(KEY)
    assert [path.read_text() for path in (store.root / "quarantine").iterdir()] == ["0ne"]


def test_putting_the_right_bytes_over_a_damaged_blob_mends_it(store: LocalStore, tmp_path: Path) -> None:
    ref = commit(store, tmp_path / "out")
    overwrite(blob_of(store, ref, "a.txt"))
    (tmp_path / "single").write_text("one")
    store.put(tmp_path / "single", "files")
    assert store.action(KEY) is not None


def test_a_new_stamp_is_read_once_and_then_trusted(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a store was copied to another disk."""
    ref = commit(store, tmp_path / "out")
    os.utime(blob_of(store, ref, "a.txt"), (1, 1))
    hashed: list[Path] = []
    real = blobs_module.hash_file
    monkeypatch.setattr(blobs_module, "hash_file", lambda path: hashed.append(path) or real(path))
    assert store.action(KEY) is not None
    assert store.action(KEY) is not None
    assert hashed == [blob_of(store, ref, "a.txt")]


def test_links_to_a_blob_do_not_make_it_doubtful(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = commit(store, tmp_path / "out")
    store.check_out(ref, tmp_path / "in")

    def never(path: Path) -> str:
        raise AssertionError(path)

    monkeypatch.setattr(blobs_module, "hash_file", never)
    assert store.action(KEY) is not None


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"{}", b'{"key": 1}'])
def test_an_unreadable_record_is_a_miss(store: LocalStore, tmp_path: Path, content: bytes) -> None:
    commit(store, tmp_path / "out")
    (store.root / "actions" / f"{KEY}.json").write_bytes(content)
    assert store.action(KEY) is None
    assert list(store.actions_of("train")) == []


def test_a_missing_tree_is_a_miss(store: LocalStore, tmp_path: Path) -> None:
    ref = commit(store, tmp_path / "out")
    (store.root / "trees" / f"{ref.digest.removeprefix('sha256:')}.json").unlink()
    assert store.action(KEY) is None


def test_actions_of_a_stage_are_listed_newest_first(store: LocalStore, tmp_path: Path) -> None:
    for number, key in enumerate("abc"):
        commit(store, tmp_path / "out", key * 64)
        os.utime(store.root / "refs" / "stages" / "train" / (key * 64), (number, number))
    assert [action.key[0] for action in store.actions_of("train")] == ["c", "b", "a"]
    assert list(store.actions_of("merge")) == []

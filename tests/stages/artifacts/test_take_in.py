"""What users hand in is read once, and again only when it has changed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from stages.artifacts import blobs as blobs_module
from stages.artifacts import store as store_module
from stages.artifacts.store import LocalStore
from stages.errors import UserError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder whose files were written a while ago."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(name)
    wait_until_settled(folder)
    return folder


def wait_until_settled(folder: Path) -> None:
    """The change time cannot be set back, so the clock's grain is awaited."""
    newest = max(path.stat().st_ctime for path in folder.iterdir())
    time.sleep(max(0.0, newest + 0.06 - time.time()))


@pytest.fixture(autouse=True)
def short_grain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.artifacts.local_files.SETTLED_NS", 50_000_000)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read, by whichever way."""
    read: list[str] = []
    hash_file, copy_and_hash = blobs_module.hash_file, blobs_module.copy_and_hash

    def hashing(path: Path) -> str:
        read.append(path.name)
        return hash_file(path)

    def copying(source: Path, target: Path) -> str:
        read.append(source.name)
        return copy_and_hash(source, target)

    monkeypatch.setattr(store_module, "hash_file", hashing)
    monkeypatch.setattr(blobs_module, "copy_and_hash", copying)
    monkeypatch.setattr(blobs_module, "clone", lambda source, target: False)
    return read


def test_peek_answers_what_take_in_does_and_copies_nothing(store: LocalStore, source: Path) -> None:
    peeked = store.peek(source, "model")
    assert list(store.root.rglob("blobs/*/*")) == []
    assert not store.is_whole(peeked.ref)
    assert store.take_in(source, "model") == peeked.ref
    assert store.is_whole(peeked.ref)
    assert store.taken_in_from(peeked.ref) == [str(source)]


def test_what_is_known_is_not_read_again(store: LocalStore, source: Path, reads: list[str]) -> None:
    store.peek(source)
    assert sorted(reads) == ["a.txt", "b.txt"]
    store.peek(source)
    assert len(reads) == 2
    store.take_in(source)
    assert len(reads) == 4
    store.take_in(source)
    LocalStore(store.root).peek(source, "model")
    LocalStore(store.root).take_in(source)
    assert len(reads) == 4


def test_only_what_has_changed_is_read_again(store: LocalStore, source: Path, reads: list[str]) -> None:
    before = store.peek(source)
    reads.clear()
    stamp = (source / "a.txt").stat()
    (source / "a.txt").write_text("A.txt")
    os.utime(source / "a.txt", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert store.peek(source).digest != before.digest
    assert reads == ["a.txt"]


def test_what_was_written_just_now_is_not_trusted(store: LocalStore, source: Path, reads: list[str]) -> None:
    """A second write within the same tick of the clock would leave the same times."""
    (source / "a.txt").write_text("new")
    store.peek(source)
    reads.clear()
    store.peek(source)
    assert reads == ["a.txt"]
    wait_until_settled(source)
    store.peek(source)
    store.peek(source)
    assert reads == ["a.txt", "a.txt"]


def test_a_known_file_whose_blob_is_gone_is_taken_in_again(store: LocalStore, source: Path) -> None:
    ref = store.take_in(source)
    for blob in store.root.rglob("blobs/*/*"):
        blob.unlink()
    assert store.take_in(source) == ref
    assert store.is_whole(ref)


def test_several_paths_become_numbered_folders(store: LocalStore, source: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}")
    ref = store.take_in((source, rows))
    assert [file.path for file in store.tree(ref).files] == ["0/a.txt", "0/b.txt", "1/rows.jsonl"]
    assert store.peek((source, rows)).ref == ref
    assert store.peek((rows, source)).ref != ref


def test_what_tools_leave_in_a_folder_is_left_out(store: LocalStore, source: Path) -> None:
    before = store.peek(source)
    for name in (".git/HEAD", ".cache/huggingface/x.metadata", "__pycache__/x.pyc"):
        (source / name).parent.mkdir(parents=True)
        (source / name).write_text("x")
    (source / ".gitattributes").write_text("x")
    after = store.peek(source)
    assert [file.path for file in after.files if file not in before.files] == [".gitattributes"]


def test_the_place_of_a_folder_is_not_part_of_it(store: LocalStore, source: Path) -> None:
    before = store.take_in(source)
    assert store.take_in(source.rename(source.with_name("elsewhere"))) == before


def test_a_file_that_changes_while_it_is_read(store: LocalStore, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = blobs_module.copy_and_hash

    def slow(path: Path, target: Path) -> str:
        sha256 = real(path, target)
        path.write_text("meanwhile")
        return sha256

    monkeypatch.setattr(blobs_module, "copy_and_hash", slow)
    monkeypatch.setattr(blobs_module, "clone", lambda source, target: False)
    with pytest.raises(UserError, match="changed while it was read"):
        store.take_in(source)
    assert list(store.root.rglob("trees/*")) == []


def test_an_unreadable_record_of_a_source_is_passed_over(store: LocalStore, source: Path) -> None:
    tree = store.peek(source)
    for record in (store.root / "sources").iterdir():
        record.write_text("{")
    assert store.peek(source) == tree

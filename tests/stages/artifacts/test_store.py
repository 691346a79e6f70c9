"""Files into the store and out of it again."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from stages.artifacts.reference import ArtifactRef
from stages.artifacts.store import LocalStore, open_store
from stages.errors import CorruptArtifact, StoreError, UnknownReference, UserError


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def read(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


MODEL: dict[str, str | bytes] = {"config.json": "{}", "model.safetensors": b"\1" * 3_000_000, "sub/notes.txt": "hello"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "model", MODEL)


# --- in ---


def test_put_and_check_out(store: LocalStore, model: Path, tmp_path: Path) -> None:
    ref = store.put(model, "model")
    assert (ref.kind, ref.size) == ("model", 3_000_007)
    store.check_out(ref, tmp_path / "out")
    assert read(tmp_path / "out") == read(model)


def test_the_same_content_is_the_same_artifact_and_is_stored_once(store: LocalStore, model: Path) -> None:
    first = store.put(model, "model")
    before = sorted(store.root.rglob("blobs/*/*"))
    shutil.copytree(model, model.with_name("again"))
    assert store.put(model.with_name("again"), "model") == first
    assert sorted(store.root.rglob("blobs/*/*")) == before


def test_a_file_becomes_a_tree_with_its_name(store: LocalStore, model: Path) -> None:
    ref = store.put(model / "config.json", "files")
    assert [file.path for file in store.tree(ref).files] == ["config.json"]


def test_a_copied_source_stays_as_it_is(store: LocalStore, model: Path) -> None:
    before = {path: path.stat() for path in model.rglob("*")}
    store.put(model, "model")
    after = {path: path.stat() for path in model.rglob("*")}
    assert [(s.st_ino, s.st_mode, s.st_mtime_ns, s.st_nlink) for s in before.values()] == [
        (s.st_ino, s.st_mode, s.st_mtime_ns, s.st_nlink) for s in after.values()
    ]


def test_moving_takes_the_files_themselves(store: LocalStore, model: Path) -> None:
    inode = (model / "model.safetensors").stat().st_ino
    ref = store.put(model, "model", move=True)
    blobs = {file.path: store.blobs.path(file.sha256) for file in store.tree(ref).files}
    assert blobs["model.safetensors"].stat().st_ino == inode
    assert read(model) == {}


def test_a_moved_file_with_a_second_name_is_copied(store: LocalStore, model: Path, tmp_path: Path) -> None:
    """Whoever holds the other name could write to the blob."""
    os.link(model / "config.json", tmp_path / "other.json")
    ref = store.put(model, "model", move=True)
    (tmp_path / "other.json").write_text("changed")
    assert store.is_whole(ref)


def test_a_link_to_a_checked_out_input_is_not_copied(store: LocalStore, model: Path, tmp_path: Path) -> None:
    store.check_out(store.put(model, "model"), tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    os.link(tmp_path / "in" / "model.safetensors", out / "model.safetensors")
    (out / "config.json").symlink_to(tmp_path / "in" / "config.json")
    ref = store.put(out, "model", move=True)
    assert {file.path for file in store.tree(ref).files} == {"config.json", "model.safetensors"}
    assert len(list(store.root.rglob("blobs/*/*"))) == 3
    assert list(store.root.rglob("quarantine/*")) == []


def test_blobs_are_read_only(store: LocalStore, model: Path) -> None:
    store.put(model, "model")
    store.put(write(model.with_name("moved"), {"x": "y"}), "model", move=True)
    modes = {stat.S_IMODE(blob.stat().st_mode) for blob in store.root.rglob("blobs/*/*")}
    assert modes == {0o444}


def test_symbolic_links_are_followed(store: LocalStore, model: Path, tmp_path: Path) -> None:
    linked = tmp_path / "snapshot"
    linked.mkdir()
    (linked / "config.json").symlink_to(model / "config.json")
    (linked / "model.safetensors").symlink_to(model / "model.safetensors")
    (linked / "sub").symlink_to(model / "sub")
    assert store.put(linked, "model", move=True) == store.put(model, "model")
    assert len(read(model)) == 3


def test_an_empty_file_is_kept(store: LocalStore, tmp_path: Path) -> None:
    store.check_out(store.put(write(tmp_path / "f", {"empty": ""}), "files"), tmp_path / "out")
    assert read(tmp_path / "out") == {"empty": b""}


def make_circle(path: Path) -> None:
    write(path, {"a": "b"})
    (path / "circle").symlink_to(path)


def make_dangling(path: Path) -> None:
    path.mkdir()
    (path / "link").symlink_to("nowhere")


def make_pipe(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "pipe")


def make_hollow(path: Path) -> None:
    (path / "a" / "b").mkdir(parents=True)


def make_badly_named(path: Path) -> None:
    path.mkdir()
    (path / os.fsdecode(b"\xff.txt")).write_text("x")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (make_hollow, "holds no file"),
        (make_circle, "a folder that it is in itself"),
        (make_dangling, "is a link to nowhere, which does not exist"),
        (make_pipe, "pipe is neither a file nor a folder"),
        (make_badly_named, "not UTF-8"),
    ],
)
def test_what_cannot_be_stored(store: LocalStore, tmp_path: Path, make: object, message: str) -> None:
    path = tmp_path / "bad"
    make(path)  # type: ignore[operator]
    for take in (store.put, store.take_in, store.peek):
        with pytest.raises(UserError, match=message) as caught:
            take(path, "files")
        assert "\n" not in str(caught.value)
    assert list(store.root.rglob("trees/*")) == []


# --- out ---


def test_a_checkout_links_what_is_read_and_nothing_else(store: LocalStore, model: Path, tmp_path: Path) -> None:
    ref = store.put(model, "model")
    store.check_out(ref, tmp_path / "out", reads=("*.json", "sub/**"))
    assert set(read(tmp_path / "out")) == {"config.json", "sub/notes.txt"}
    for path in (tmp_path / "out").rglob("*.*"):
        assert path.stat().st_nlink == 2
        assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_copies_for_users_can_be_edited_without_harm(store: LocalStore, model: Path, tmp_path: Path) -> None:
    ref = store.put(model, "model")
    out = tmp_path / "out"
    store.copy_out(ref, out)
    assert read(out) == read(model)
    (out / "config.json").write_text("mine")
    large = out / "model.safetensors"
    assert large.stat().st_nlink == 2 or stat.S_IMODE(large.stat().st_mode) == 0o644
    assert store.is_whole(ref)
    store.copy_out(ref, out)
    assert read(out) == read(model)
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def test_a_copy_over_a_linked_file_leaves_the_blob_alone(store: LocalStore, tmp_path: Path) -> None:
    first = store.put(write(tmp_path / "a", {"w.bin": b"a" * 2_000_000}), "model")
    second = store.put(write(tmp_path / "b", {"w.bin": b"b" * 2_000_000}), "model")
    store.copy_out(first, tmp_path / "out")
    store.copy_out(second, tmp_path / "out")
    assert (tmp_path / "out" / "w.bin").read_bytes() == b"b" * 2_000_000
    assert store.is_whole(first)


def test_a_copy_to_another_file_system(store: LocalStore, model: Path) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == store.root.stat().st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    target = shared / f"martlet-test-{os.getpid()}"
    try:
        store.copy_out(store.put(model, "model"), target)
        assert read(target) == read(model)
        store.check_out(store.put(model, "model"), target / "in")
        assert read(target / "in") == read(model)
    finally:
        shutil.rmtree(target, ignore_errors=True)


# --- references ---


def test_find_takes_short_digests(store: LocalStore, model: Path) -> None:
    ref = store.put(model, "model")
    digits = ref.digest.removeprefix("sha256:")
    for text in (ref.digest, ref.digest[:15], digits[:8], digits[:12].upper(), ref.digest[:19] + "…"):
        assert store.find(text) == ref


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sha256:abc", "'sha256:abc' is not a digest: give sha256: and 8 to 64"),
        ("latest", "'latest' is not a digest"),
        ("sha256:" + "0" * 64, "no artifact sha256:0000.* `martlet artifacts list`"),
    ],
)
def test_unknown_digests(store: LocalStore, model: Path, text: str, message: str) -> None:
    store.put(model, "model")
    with pytest.raises(UnknownReference, match=message):
        store.find(text)


def test_an_ambiguous_digest_lists_the_choices(store: LocalStore, model: Path) -> None:
    ref = store.put(model, "model")
    digits = ref.digest.removeprefix("sha256:")
    twin = store.root / "trees" / f"{digits[:10]}{'0' * 54}.json"
    twin.write_text("{}")
    with pytest.raises(UnknownReference, match=f"ambiguous: it may be sha256:{digits[:10]}.*, sha256:{digits[:10]}"):
        store.find(digits[:8])
    assert store.find(digits[:20]) == ref


def test_a_damaged_tree_is_noticed(store: LocalStore, model: Path) -> None:
    ref = store.put(model, "model")
    path = store.root / "trees" / f"{ref.digest.removeprefix('sha256:')}.json"
    path.write_bytes(path.read_bytes().replace(b"config.json", b"konfig.json"))
    with pytest.raises(CorruptArtifact, match=r"the tree of sha256:.* is damaged"):
        store.tree(ref)
    assert not store.is_whole(ref)


def test_a_tree_that_is_not_there(store: LocalStore) -> None:
    with pytest.raises(UnknownReference, match="no artifact"):
        store.tree(ArtifactRef("model", "sha256:" + "1" * 64, 1))


# --- the place ---


def test_the_environment_names_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARTLET_STORE", str(tmp_path / "mine"))
    assert open_store().location == str(tmp_path / "mine")
    assert open_store(tmp_path / "given").location == str(tmp_path / "given")
    monkeypatch.delenv("MARTLET_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert open_store().location == str(tmp_path / "cache" / "martlet")


def make_file(path: Path) -> None:
    path.write_text("x")


def make_other_folder(path: Path) -> None:
    write(path, {"thesis.tex": "x"})


def make_marked_badly(path: Path) -> None:
    write(path, {"martlet-store.json": ""})


def make_newer(path: Path) -> None:
    write(path, {"martlet-store.json": '{"format": 99}'})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_file, "is a file; set MARTLET_STORE to a folder"),
        (make_other_folder, "is not a store but a folder with other files"),
        (make_marked_badly, r'martlet-store.json is damaged: it should hold {"format": 1}'),
        (make_newer, "has format 99; this Martlet reads format 1"),
    ],
)
def test_places_that_are_no_store(tmp_path: Path, make: object, message: str) -> None:
    make(tmp_path / "place")  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        open_store(tmp_path / "place")


def test_a_place_without_permission(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere; test_full_disk.py mounts a read-only file system instead")
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot write to the store"):
        open_store(tmp_path / "place")
    tmp_path.chmod(0o700)


# --- runs ---


def test_runs_are_kept_and_found(store: LocalStore) -> None:
    assert store.runs() == []
    store.save_run({"id": "3f2a-1", "ok": True})
    store.save_run({"id": "7b00-2", "ok": False})
    os.utime(store.root / "runs" / "3f2a-1.json", (1, 1))
    assert [run["id"] for run in store.runs()] == ["7b00-2", "3f2a-1"]
    assert store.run("3f2a-1") == store.run("3f") == {"id": "3f2a-1", "ok": True}


@pytest.mark.parametrize(
    ("name", "message"),
    [("9", "unknown run '9'. Choose from: 3f2a, 3f2b"), ("3f", "run '3f' is ambiguous: 3f2a, 3f2b"), ("", "unknown")],
)
def test_unknown_runs(store: LocalStore, name: str, message: str) -> None:
    store.save_run({"id": "3f2a"})
    store.save_run({"id": "3f2b"})
    with pytest.raises(UnknownReference, match=message):
        store.run(name)


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden"])
def test_a_run_may_not_leave_its_folder(store: LocalStore, name: str) -> None:
    with pytest.raises(ValueError, match="a run's id is made of"):
        store.save_run({"id": name})

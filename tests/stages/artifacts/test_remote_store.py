"""Two hosts' stores on one bucket of a real S3 server: files, results, records, damage."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from stages.artifacts.describe import list_artifacts, show_artifact
from stages.artifacts.lineage import lineage
from stages.artifacts.manifest import Manifest
from stages.artifacts.reference import ArtifactRef
from stages.artifacts.remote_store import RemoteStore
from stages.artifacts.verify import verify
from stages.errors import CorruptArtifact, UnknownReference, UserError
from stages.run import plan_stage, run_stage

from .conftest import Bucket

Host = Callable[[str], RemoteStore]

LARGE = bytes(range(256)) * 4 * 1024 * 20  # 20 MiB: more than one part
MODEL = {"config.json": b"{}", "tokenizer.json": b'{"a": 1}', "model.safetensors": LARGE, "sub/copy.json": b"{}"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for name, content in MODEL.items():
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "model"


def read(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def manifest(artifact: ArtifactRef, key: str = "a" * 64, ended: str = "2026-11-24T10:00:00+00:00") -> Manifest:
    body = {"stage": "train", "version": 1, "arguments": {}, "inputs": {}, "libraries": {}}
    return Manifest(artifact=artifact, stage="train", key=key, body=body, inputs={}, ended=ended)


# --- files ---


def test_what_one_host_puts_another_checks_out(host: Host, bucket: Bucket, model: Path, tmp_path: Path) -> None:
    ref = host("a").put(model, "model")
    assert len(bucket.names("blobs")) == 3
    assert all(bucket.names("blobs/" + name[6:8]) for name in bucket.names("blobs"))
    host("b").check_out(ref, tmp_path / "out")
    assert read(tmp_path / "out") == MODEL
    assert (tmp_path / "out" / "config.json").stat().st_mode & 0o777 == 0o444


def test_only_the_files_that_are_read_are_pulled(host: Host, bucket: Bucket, model: Path, tmp_path: Path) -> None:
    ref = host("a").put(model, "model")
    other = host("b")
    other.check_out(ref, tmp_path / "out", ["*.json"])
    assert read(tmp_path / "out") == {"config.json": b"{}", "tokenizer.json": b'{"a": 1}'}
    pulled = [asked for asked in bucket.asked("/blobs/") if asked.method == "GET"]
    assert sum(asked.sent for asked in pulled) == len(b"{}") + len(b'{"a": 1}')
    other.check_out(ref, tmp_path / "again", ["*.json"])
    assert len([asked for asked in bucket.asked("/blobs/") if asked.method == "GET"]) == len(pulled)


def test_what_is_there_is_not_uploaded_again(host: Host, bucket: Bucket, model: Path) -> None:
    ref = host("a").put(model, "model")
    before = [asked for asked in bucket.asked("/blobs/") if asked.method in ("PUT", "POST")]
    assert host("b").put(model, "model") == ref
    (model / "new.json").write_text("new")
    host("c").put(model, "model")
    after = [asked for asked in bucket.asked("/blobs/") if asked.method in ("PUT", "POST")][len(before) :]
    assert [asked.received for asked in after] == [3]


def test_a_blob_of_another_size_is_uploaded_anew(host: Host, bucket: Bucket, model: Path) -> None:
    ref = host("a").put(model, "model")
    before = {name: bucket.read(name) for name in bucket.names("blobs")}
    for name in before:
        bucket.write(name, b"of another size")
    assert not host("c").is_whole(ref)
    assert host("b").put(model, "model") == ref
    assert {name: bucket.read(name) for name in bucket.names("blobs")} == before


def test_a_blob_that_was_changed_in_the_bucket_is_noticed(
    host: Host, bucket: Bucket, model: Path, tmp_path: Path
) -> None:
    ref = host("a").put(model, "model")
    large = max(bucket.names("blobs"), key=lambda name: len(bucket.read(name)))
    bucket.write(large, LARGE[:-1] + b"\0")
    other = host("b")
    with pytest.raises(CorruptArtifact, match=r"model\.safetensors of model sha256:\w{12} is not what it was"):
        other.check_out(ref, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert bucket.names("quarantine")
    assert not other.is_whole(ref)
    other.check_out(ref, tmp_path / "small", ["*.json"])
    assert host("c").put(model, "model") == ref
    other.check_out(ref, tmp_path / "out")
    assert read(tmp_path / "out") == MODEL


def test_verification_reads_every_byte_and_moves_nothing(host: Host, bucket: Bucket, model: Path) -> None:
    store = host("a")
    ref = store.put(model, "model")
    assert verify(store).problems == ()
    small = min(bucket.names("blobs"), key=lambda name: len(bucket.read(name)))
    bucket.write(small, b"[]")
    assert [(problem.path, problem.what) for problem in verify(store, [ref]).problems] == [
        ("config.json", "damaged"),
        ("sub/copy.json", "damaged"),
    ]
    assert bucket.read(small) == b"[]"


def test_a_blob_that_is_gone_is_noticed(host: Host, bucket: Bucket, model: Path, tmp_path: Path) -> None:
    store = host("a")
    ref = store.put(model, "model")
    large = max(bucket.names("blobs"), key=lambda name: len(bucket.read(name)))
    bucket.remove(large)
    other = host("b")
    with pytest.raises(CorruptArtifact, match=r"model\.safetensors is not in the store s3://.* any more"):
        other.check_out(ref, tmp_path / "out")
    assert [problem.what for problem in verify(other, [ref]).problems] == ["missing"]


def test_a_damaged_cache_is_filled_again(host: Host, model: Path, tmp_path: Path) -> None:
    host("a").put(model, "model")
    store = host("b")
    ref = store.put(model, "model")
    sha256 = next(file.sha256 for file in store.tree(ref).files if file.path == "tokenizer.json")
    blob = store.local.blobs.path(sha256)
    blob.chmod(0o644)
    blob.write_bytes(b'{"a": 2}')
    store.check_out(ref, tmp_path / "out")
    assert read(tmp_path / "out") == MODEL


def test_taken_in_files_are_there_for_all(host: Host, model: Path, tmp_path: Path) -> None:
    ref = host("a").take_in(model / "config.json")
    assert host("a").take_in(model / "config.json") == ref
    other = host("b")
    assert other.taken_in_from(ref) == [str(model / "config.json")]
    assert other.find(ref.digest[:19]) == ref
    other.copy_out(ref, tmp_path / "out")
    assert read(tmp_path / "out") == {"config.json": b"{}"}


def test_looking_at_a_users_files_asks_the_server_nothing(host: Host, bucket: Bucket, model: Path) -> None:
    store = host("a")
    before = len(bucket.asked())
    tree = store.peek(model, "model")
    assert len(bucket.asked()) == before
    assert store.put(model, "model") == tree.ref


@pytest.mark.parametrize(
    ("digest", "message"),
    [
        ("sha256:00000000", "no artifact sha256:00000000 in the store s3://"),
        ("ffffffff" * 8, "no artifact f"),
        ("xyz", "'xyz' is not a digest: give sha256: and 8 to 64 hexadecimal digits"),
    ],
)
def test_unknown_digests(host: Host, model: Path, digest: str, message: str) -> None:
    store = host("a")
    store.put(model, "model")
    with pytest.raises(UnknownReference, match=message):
        store.find(digest)


def test_an_ambiguous_digest(host: Host, bucket: Bucket) -> None:
    store = host("a")
    for end in ("1", "2"):
        bucket.write(f"trees/{'ab' * 31}a{end}.json", b"{}")
    with pytest.raises(UnknownReference, match=r"abababab is ambiguous: it may be sha256:abab\w+, sha256:abab"):
        store.find("abababab")


def test_a_damaged_tree(host: Host, bucket: Bucket, model: Path) -> None:
    ref = host("a").put(model, "model")
    bucket.write(f"trees/{ref.digest[7:]}.json", b'{"kind": "model", "files": []}')
    other = host("b")
    with pytest.raises(CorruptArtifact, match="is damaged; run the stage that makes it again"):
        other.tree(ref)
    assert not other.is_whole(ref)


# --- results ---


def test_a_result_of_one_host_is_a_hit_on_another(
    host: Host, bucket: Bucket, tiny: ModuleType, text_file: Path
) -> None:
    first = run_stage(tiny.REPEAT, tiny.TinyArguments(times=3), {"text": text_file}, store=host("a"))
    other = host("b")
    before = len(bucket.asked())
    planned = plan_stage(tiny.REPEAT, tiny.TinyArguments(times=3), {"text": text_file}, store=other)
    second = run_stage(tiny.REPEAT, tiny.TinyArguments(times=3), {"text": text_file}, store=other)
    assert (first.status, planned.status, second.status) == ("ran", "cached", "cached")
    assert second.artifact == first.artifact
    asked = bucket.asked()[before:]
    assert [one.path for one in asked if one.method == "GET" and "/blobs/" in one.path] == []
    for folder in ("leases", "scratch"):
        assert bucket.names(folder) == []


def test_the_order_of_a_commit(host: Host, bucket: Bucket, tiny: ModuleType, text_file: Path) -> None:
    store = host("a")
    store.take_in(text_file)
    before = len(bucket.asked())
    run_stage(tiny.REPEAT, tiny.TinyArguments(), {"text": text_file}, store=store)
    written = [asked.path.split("/")[4].split("?")[0] for asked in bucket.asked()[before:] if asked.method == "PUT"]
    written = [folder for folder in written if folder not in ("refs", "leases")]
    assert written == ["blobs", "blobs", "trees", "blobs", "trees", "manifests", "actions"]


@pytest.mark.parametrize("lost", ["blobs", "trees"])
def test_a_result_that_is_not_whole_is_no_hit(
    host: Host, bucket: Bucket, tiny: ModuleType, text_file: Path, lost: str
) -> None:
    result = run_stage(tiny.REPEAT, tiny.TinyArguments(), {"text": text_file}, store=host("a"))
    tree = host("a").tree(result.artifact)
    file = tree.files[0]
    bucket.remove(f"blobs/{file.sha256[:2]}/{file.sha256[2:]}" if lost == "blobs" else f"trees/{tree.name}.json")
    other = host("b")
    assert other.recorded(result.key) is not None
    assert other.action(result.key) is None
    assert run_stage(tiny.REPEAT, tiny.TinyArguments(), {"text": text_file}, store=other).status == "ran"
    assert host("c").action(result.key) is not None


def test_what_only_the_cache_has_whole_is_uploaded_again(
    host: Host, bucket: Bucket, tiny: ModuleType, text_file: Path
) -> None:
    result = run_stage(tiny.REPEAT, tiny.TinyArguments(), {"text": text_file}, store=host("a"))
    names = bucket.names("blobs")
    for name in names:
        bucket.remove(name)
    assert host("b").action(result.key) is None
    assert host("a").action(result.key) is not None
    assert host("b").action(result.key) is not None
    assert set(bucket.names("blobs")) < set(names)  # the input's and the attachments' are not the artifact's


def test_a_forced_run_replaces_the_answer(host: Host, tiny: ModuleType, text_file: Path, tmp_path: Path) -> None:
    """Also where it is another one: the first run's is still there under its digest."""
    number = [1]

    def differs(arguments: object, inputs: object, out: Path, context: object) -> dict[str, int]:
        (out / "x.txt").write_text(str(number))
        return {}

    stage = replace(tiny.REPEAT, name="differs", function=differs)
    first = run_stage(stage, tiny.TinyArguments(), {"text": text_file}, store=host("a"))
    number.append(2)
    second = run_stage(stage, tiny.TinyArguments(), {"text": text_file}, store=host("b"), force=True)
    assert second.artifact != first.artifact
    answer = host("c").action(first.key)
    assert answer is not None
    assert answer.artifact == second.artifact
    assert host("c").is_whole(first.artifact)


def test_of_two_hosts_that_answer_at_once_the_first_counts(host: Host, model: Path) -> None:
    """As where a lease was lost without notice: both saw no answer when they took it."""
    a, b = host("a"), host("b")
    one, two = a.put(model / "config.json", "files"), b.put(model / "tokenizer.json", "files")
    assert a.records.write(manifest(one), None).artifact == one
    assert b.records.write(manifest(two), None).artifact == one
    answer = host("c").action("a" * 64)
    assert answer is not None
    assert answer.artifact == one


def test_a_stage_whose_answer_came_too_late_gives_the_one_that_counts(
    host: Host, tiny: ModuleType, text_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = host("a"), host("b")
    key = ""

    def overtaken(arguments: object, inputs: object, out: Path, context: object) -> dict[str, int]:
        other = b.put(text_file, "model")
        b.records.write(manifest(other, key), None)
        (out / "x.txt").write_text("late")
        return {}

    stage = replace(tiny.REPEAT, name="overtaken", function=overtaken)
    key = plan_stage(stage, tiny.TinyArguments(), {"text": text_file}, store=a).key
    result = run_stage(stage, tiny.TinyArguments(), {"text": text_file}, store=a)
    assert result.artifact == b.put(text_file, "model")
    assert "another host was faster" in caplog.text


def test_records_that_cannot_be_read_count_as_not_there(host: Host, bucket: Bucket, model: Path) -> None:
    store = host("a")
    ref = store.put(model / "config.json", "files")
    store.commit(manifest(ref))
    for damaged in (b"{", b'{"key": 1}'):
        bucket.write(f"actions/{'a' * 64}.json", damaged)
        assert store.action("a" * 64) is None
    assert store.commit(manifest(ref)).artifact == ref
    assert store.action("a" * 64) is not None


def test_a_reason_for_running(host: Host, tiny: ModuleType, text_file: Path) -> None:
    run_stage(tiny.REPEAT, tiny.TinyArguments(times=3), {"text": text_file}, store=host("a"))
    planned = plan_stage(tiny.REPEAT, tiny.TinyArguments(times=4), {"text": text_file}, store=host("b"))
    assert (planned.status, planned.reason) == ("run", "times 3 → 4")


def test_actions_of_a_stage_come_newest_first(host: Host, model: Path) -> None:
    store = host("a")
    ref = store.put(model / "config.json", "files")
    for hour in (1, 3, 2):
        store.commit(manifest(ref, f"{hour}" * 64, f"2026-11-24T0{hour}:00:00+00:00"))
    assert [action.key[0] for action in host("b").actions_of("train")] == ["3", "2", "1"]
    assert [one.key[0] for one in host("b").manifests(ref)] == ["3", "2", "1"]
    assert list(host("b").actions_of("merge")) == []


def test_lists_lineage_and_verification(host: Host, tiny: ModuleType, text_file: Path) -> None:
    result = run_stage(tiny.REPEAT, tiny.TinyArguments(), {"text": text_file}, store=host("a"))
    store = host("b")
    records = list_artifacts(store)
    assert [(record["kind"], record["stage"]) for record in records] == [("model", "repeat"), ("files", None)]
    assert records[1]["taken_in_from"] == [str(text_file)]
    assert show_artifact(store, result.artifact)["is_whole"]
    assert [node.stage for node in lineage(store, result.artifact)] == ["repeat", None]
    found = verify(store)
    assert (found.trees, found.blobs, found.problems) == (3, 4, ())
    assert not list(store.local.root.glob("blobs/*/*"))


def test_runs(host: Host) -> None:
    store = host("a")
    for name in ("run-1", "run-2", "other"):
        store.save_run({"id": name, "seconds": 1})
    other = host("b")
    assert other.run("other")["id"] == "other"
    assert other.run("oth")["id"] == "other"
    assert {record["id"] for record in other.runs()} == {"run-1", "run-2", "other"}
    for name, message in [("run", "ambiguous"), ("none", "unknown run 'none'. Choose from: other, run-1, run-2")]:
        with pytest.raises(UnknownReference, match=message):
            other.run(name)
    with pytest.raises(ValueError, match="letters"):
        store.save_run({"id": "../x"})


# --- the store itself ---


def test_a_prefix_with_other_things_is_refused(host: Host, bucket: Bucket) -> None:
    bucket.write("holiday.jpg", b"x")
    with pytest.raises(UserError, match=r"is not a store but holds other things, such as holiday\.jpg"):
        host("a")
    assert bucket.names() == ["holiday.jpg"]


@pytest.mark.parametrize(
    ("marker", "message"),
    [(b'{"format": 2}', "has format 2; this Martlet reads format 1"), (b"x", r"martlet-store\.json is damaged")],
)
def test_a_store_of_another_format(host: Host, bucket: Bucket, marker: bytes, message: str) -> None:
    bucket.write("martlet-store.json", marker)
    with pytest.raises(UserError, match=message):
        host("a")


def test_two_stores_do_not_share_a_cache(host: Host, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.artifacts.address import parse_address

    first = host("a")
    assert first.local.root != parse_address(bucket.location + "/other").cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert first.local.root != parse_address(bucket.location).cache()
    monkeypatch.delenv("MARTLET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert parse_address("s3://bucket/a//b/").cache().name.startswith("bucket-a-b-")
    assert parse_address("s3://bucket").cache().parent == Path("/cache/martlet-remote")


def test_hosts_that_put_the_same_at_once(host: Host, bucket: Bucket, model: Path) -> None:
    stores = [host(name) for name in "abcd"]
    refs: list[ArtifactRef] = []
    threads = [threading.Thread(target=lambda store=store: refs.append(store.put(model, "model"))) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refs) == 4
    assert len(set(refs)) == 1
    assert verify(host("e")).problems == ()


def test_no_secret_is_kept(host: Host, bucket: Bucket, tiny: ModuleType, text_file: Path) -> None:
    run_stage(tiny.REPEAT, tiny.TinyArguments(), {"text": text_file}, store=host("a"))
    kept = [bucket.read(name) for name in bucket.names()]
    kept += [path.read_bytes() for path in host("a").local.root.rglob("*") if path.is_file()]
    assert kept
    assert not [data for data in kept if b"s3cr3t" in data or b"martlet-test" in data]
    assert json.loads(bucket.read("martlet-store.json")) == {"format": 1}

"""Lineage, differences, lists and verification of a small history: source → first → second."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import ModuleType

import pytest

from stages.artifacts.describe import list_artifacts, show_artifact, size_text
from stages.artifacts.lineage import diff, lineage, lineage_text
from stages.artifacts.reference import ArtifactRef
from stages.artifacts.store import LocalStore
from stages.artifacts.verify import verify
from stages.errors import UnknownReference
from stages.run import StageResult, run_stage

History = tuple[StageResult, StageResult]


@pytest.fixture
def history(store: LocalStore, text_file: Path, tiny: ModuleType) -> History:
    first = run_stage(tiny.REPEAT, tiny.TinyArguments(), {"text": text_file}, store=store)
    inputs = {"text": text_file, "extra": first.artifact}
    return first, run_stage(tiny.REPEAT, tiny.TinyArguments(times=3), inputs, store=store)


def blob(store: LocalStore, ref: ArtifactRef, path: str) -> Path:
    return next(store.blobs.path(file.sha256) for file in store.tree(ref).files if file.path == path)


def test_lineage(store: LocalStore, history: History, text_file: Path) -> None:
    first, second = history
    nodes = lineage(store, second.artifact)
    source = first.inputs["text"]
    assert [node.artifact for node in nodes] == [second.artifact, first.artifact, source]
    assert nodes[0].inputs == {"text": source.digest, "extra": first.artifact.digest}
    assert nodes[2].taken_in_from == (str(text_file),)
    assert nodes[2].stage is None
    json.dumps([node.to_json() for node in nodes])


def test_lineage_as_text(store: LocalStore, history: History, text_file: Path) -> None:
    text = lineage_text(lineage(store, history[1].artifact))
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC, \d+\.\d s", "WHEN", re.sub(r"sha256:\w+", "DIGEST", text))
    assert text.splitlines() == [
        "model DIGEST (2.0 MB)  repeat, WHEN",
        "├── extra: model DIGEST (2.0 MB)  repeat, WHEN",
        f"│   └── text: files DIGEST (6 B)  from {text_file}",
        "└── text: files DIGEST (6 B)  (as above)",
    ]


def test_lineage_survives_what_was_removed(store: LocalStore, history: History) -> None:
    first, second = history
    (store.root / "trees" / f"{first.artifact.digest.removeprefix('sha256:')}.json").unlink()
    assert [node.is_here for node in lineage(store, second.artifact)] == [True, False, True]
    assert "no longer in the store" in lineage_text(lineage(store, second.artifact))


def test_diff(store: LocalStore, history: History) -> None:
    first, second = history
    found = diff(store, first.artifact, second.artifact)
    assert (found.added, found.removed, found.changed) == ((), (), ("sub/repeated.txt",))
    assert found.causes == ("times default → 3", "input extra added")
    assert found.metrics == {"times": (2, 3)}
    assert "times 2 → 3" in str(found)
    json.dumps(found.to_json())


def test_diff_with_what_a_user_handed_in(store: LocalStore, history: History) -> None:
    first, _ = history
    found = diff(store, first.inputs["text"], first.artifact)
    assert found.causes == ("made by the user → made by repeat",)
    assert found.removed == ("text.txt",)


def test_diff_of_the_same(store: LocalStore, history: History) -> None:
    assert "the same files, made the same way" in str(diff(store, history[0].artifact, history[0].artifact))


def test_lineage_of_the_unknown(store: LocalStore) -> None:
    unknown = ArtifactRef("model", "sha256:" + "0" * 64, 1)
    with pytest.raises(UnknownReference, match="no artifact"):
        diff(store, unknown, unknown)


def test_list_and_show(store: LocalStore, history: History, text_file: Path) -> None:
    first, second = history
    records = list_artifacts(store)
    assert [record["digest"] for record in records] == [
        second.artifact.digest,
        first.artifact.digest,
        first.inputs["text"].digest,
    ]
    assert records[2]["taken_in_from"] == [str(text_file)]
    shown = show_artifact(store, second.artifact)
    assert shown["is_whole"]
    assert [file["path"] for file in shown["files"]] == ["large.bin", "sub/repeated.txt"]
    assert shown["manifests"][0]["key"] == second.key
    json.dumps([records, shown])


# --- verify ---


def test_a_whole_store(store: LocalStore, history: History) -> None:
    """Two artifacts, the source, and one tree of attachments."""
    told: list[tuple[int, int]] = []
    found = verify(store, progress=lambda done, total: told.append((done, total)))
    assert (found.trees, found.blobs, found.problems) == (4, 5, ())
    assert found.bytes == 2_000_000 + 6 + 12 + 18 + len("from step 0\n")
    assert told[-1] == (found.bytes, found.bytes)
    assert found.to_json()["ok"]


def test_every_artifact_that_has_a_damaged_file_is_named(store: LocalStore, history: History) -> None:
    first, second = history
    shared = blob(store, first.artifact, "large.bin")
    stamp = shared.stat()
    shared.chmod(0o644)
    with shared.open("r+b") as file:
        file.write(b"x")

    os.utime(shared, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert store.is_whole(first.artifact)  # as fast as it is, it cannot see this
    blob(store, second.artifact, "sub/repeated.txt").unlink()
    found = verify(store)
    assert {(problem.artifact, problem.path, problem.what) for problem in found.problems} == {
        (first.artifact.digest, "large.bin", "damaged"),
        (second.artifact.digest, "large.bin", "damaged"),
        (second.artifact.digest, "sub/repeated.txt", "missing"),
    }
    assert shared.exists()
    assert verify(store, [first.inputs["text"]]).problems == ()
    assert len(verify(store, [first.artifact]).problems) == 1
    json.dumps(found.to_json())


def test_a_damaged_list_of_files(store: LocalStore, history: History) -> None:
    path = store.root / "trees" / f"{history[0].artifact.digest.removeprefix('sha256:')}.json"
    path.write_text("{}")
    (problem,) = verify(store).problems
    assert str(problem) == f"damaged: {history[0].artifact.digest[:19]} (its list of files)"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (517, "517 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_949, "99.9 kB"),
        (99_951, "100 kB"),
        (4_200_000, "4.2 MB"),
        (269_060_552, "269 MB"),
        (999_600_000, "1.0 GB"),
        (15_230_000_000, "15.2 GB"),
        (2_000_000_000_000, "2.0 TB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text

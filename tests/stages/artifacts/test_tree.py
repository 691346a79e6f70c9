"""Paths, globs and digests of trees."""

from __future__ import annotations

import json

import pytest

from stages.artifacts.tree import File, Tree, matches

A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("glob", "path", "expected"),
    [
        ("**", "config.json", True),
        ("**", "deep/er/config.json", True),
        ("*", "config.json", True),
        ("*", "deep/config.json", False),
        ("*.json", "config.json", True),
        ("*.json", "config.json.bak", False),
        ("*.json", "configXjson", False),
        ("**/*.json", "config.json", True),
        ("**/*.json", "a/b/config.json", True),
        ("0/**", "0/rows.jsonl", True),
        ("0/**", "0/sub/rows.jsonl", True),
        ("0/**", "1/rows.jsonl", False),
        ("a/**/z", "a/z", True),
        ("a/**/z", "a/b/c/z", True),
        ("a/**/z", "ab/z", False),
        ("tokenizer*", "tokenizer_config.json", True),
        ("model-?.bin", "model-1.bin", True),
        ("model-?.bin", "model-12.bin", False),
        ("[x].txt", "[x].txt", True),
    ],
)
def test_globs(glob: str, path: str, expected: bool) -> None:
    assert matches(path, [glob]) is expected


def test_the_digest_is_frozen() -> None:
    """Were it to change, every store would be void."""
    tree = Tree.of("model", [File("b.txt", 2, B), File("a.txt", 1, A)])
    assert tree.digest == "sha256:76ba64c8c5387dab6c820094d8af8154df9378da3cb7fed1a117ee994dde286e"


def test_a_digest_depends_on_kind_path_and_content_but_not_on_order() -> None:
    files = [File("a.txt", 1, A), File("b.txt", 2, B)]
    digests = {
        Tree.of("model", files).digest,
        Tree.of("model", reversed(files)).digest,
        Tree.of("adapter", files).digest,
        Tree.of("model", [File("a.txt", 1, A), File("c.txt", 2, B)]).digest,
        Tree.of("model", [File("a.txt", 1, B), File("b.txt", 2, B)]).digest,
    }
    assert len(digests) == 4


def test_a_view_changes_only_with_what_is_read() -> None:
    before = Tree.of("model", [File("config.json", 1, A), File("model.safetensors", 9, A)])
    after = Tree.of("model", [File("config.json", 1, A), File("model.safetensors", 9, B)])
    assert before.digest != after.digest
    assert before.view_digest(["*.json"]) == after.view_digest(["*.json"])
    assert before.view_digest(["**"]) == before.digest
    assert before.view_digest(["*"]) == before.digest


def test_bytes_and_back() -> None:
    tree = Tree.of("dataset", [File("zwölf/ä.txt", 3, A)])
    assert Tree.from_bytes(tree.to_bytes()) == tree


@pytest.mark.parametrize(
    "change",
    [
        {"path": "../escape"},
        {"path": "/etc/passwd"},
        {"path": "a//b"},
        {"path": ""},
        {"sha256": "../../x"},
        {"sha256": "A" * 64},
    ],
    ids=str,
)
def test_a_tree_that_would_leave_its_folder_is_refused(change: dict[str, str]) -> None:
    entry = {"path": "a", "size": 1, "sha256": A} | change
    with pytest.raises(ValueError, match="unsafe"):
        Tree.from_bytes(json.dumps({"kind": "model", "files": [entry]}).encode())


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"kind": "x", "files": []}', b'{"kind": "model", "files": [1]}'])
def test_what_is_no_tree_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Tree.from_bytes(data)

"""The manifest's schema, which other programs read, and that it keeps no secret."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from stages.artifacts.manifest import ActionRecord, Manifest
from stages.artifacts.store import LocalStore
from stages.run import run_stage

# Bump `manifest.FORMAT_VERSION` when one of these changes its meaning or goes; adding is free.
MANIFEST = {
    "artifact": "dict", "attachments": "str", "body": "dict", "ended": "str", "format": "int", "inputs": "dict",
    "key": "str", "machine": "dict", "metrics": "dict", "peak_memory_bytes": "int", "resumed": "bool",
    "seconds": "float", "stage": "str", "started": "str",
}  # fmt: skip
BODY = {"arguments": "dict", "inputs": "dict", "libraries": "dict", "stage": "str", "version": "int"}
MACHINE = {"commit", "cores", "gpus", "host", "image", "image_content", "processor", "python", "system"}
ACTION = {"artifact", "attachments", "body", "ended", "format", "key", "metrics", "seconds", "stage"}


def types(record: dict[str, object]) -> dict[str, str]:
    return {name: type(value).__name__ for name, value in sorted(record.items())}


def test_the_schema_is_frozen(store: LocalStore, text_file: Path, tiny: ModuleType) -> None:
    result = run_stage(tiny.REPEAT, tiny.TinyArguments(), {"text": text_file}, store=store)
    (path,) = store.root.glob("manifests/*/*.json")
    manifest = json.loads(path.read_text())
    assert types(manifest) == MANIFEST
    assert types(manifest["body"]) == BODY
    assert set(manifest["machine"]) == MACHINE
    assert set(manifest["artifact"]) == {"kind", "digest", "size"}
    action = json.loads((store.root / "actions" / f"{result.key}.json").read_text())
    assert set(action) == ACTION
    assert Manifest.from_json(manifest).to_json() == manifest
    assert ActionRecord.from_json(action).to_json() == action
    assert 1_000_000 < manifest["peak_memory_bytes"] < 100_000_000_000
    assert manifest["started"] < manifest["ended"]
    assert manifest["started"].endswith("+00:00")


def test_no_secret_and_no_path_is_kept(
    store: LocalStore, text_file: Path, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_in_the_environment")
    arguments = tiny.TinyArguments(path=str(text_file), calls=str(text_file.with_name("kept-out-of-keys")))
    run_stage(tiny.REPEAT, arguments, {}, store=store)
    for name in ("manifests", "actions"):
        (record,) = (store.root / name).rglob("*.json")
        text = record.read_text()
        assert "hf_secret" not in text
        assert "kept-out-of-keys" not in text
        assert str(text_file.parent) not in text

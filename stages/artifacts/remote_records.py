"""The records of a store in a bucket, one object each, with the names that `records.Records` gives them as files."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stages.artifacts.hashing import in_threads
from stages.artifacts.manifest import ActionRecord, Manifest
from stages.artifacts.objects import Entry, Objects
from stages.artifacts.records import check_run_id, which_run
from stages.errors import UnknownReference

__all__ = ["RemoteRecords"]

AT_ONCE = 16

logger = logging.getLogger("martlet.store")


class RemoteRecords:
    """Actions, manifests, references and runs; a record that cannot be read counts as not there."""

    def __init__(self, objects: Objects) -> None:
        """Asks nothing of the server yet."""
        self.objects = objects

    def action(self, key: str) -> ActionRecord | None:
        """The record that answers a key, whether or not its artifact is whole."""
        record = self._read(_action(key))
        try:
            return ActionRecord.from_json(record) if record else None
        except (KeyError, TypeError):
            logger.warning("the record of action %s is of another format", key)
            return None

    def action_tag(self, key: str) -> str | None:
        """The ETag of that record, to be replaced by one that was made from here on."""
        return self.objects.tag(_action(key))

    def write(self, manifest: Manifest, over: str | None) -> ActionRecord:
        """Writes the manifest and, last, the action that makes it count, unless another host was faster.

        Args:
            manifest: what was made.
            over: the ETag of the action that it replaces; None if there was none.

        Returns:
            The action that counts: this one, or the one that another host has written meanwhile.
        """
        digest = manifest.artifact.digest.removeprefix("sha256:")
        action = ActionRecord.of(manifest)
        self.objects.put(f"manifests/{digest}/{manifest.key}.json", _json(manifest.to_json()))
        self.objects.put(f"refs/stages/{manifest.stage}/{manifest.key}", b"")
        name, data = _action(manifest.key), _json(action.to_json())
        tag = self.objects.create(name, data) if over is None else self.objects.replace(name, data, over)
        if tag is not None:
            return action
        return self.action(manifest.key) or self._overwrite(action)

    def _overwrite(self, action: ActionRecord) -> ActionRecord:
        """Where what stands in the way cannot be read, or is gone."""
        self.objects.put(_action(action.key), _json(action.to_json()))
        return action

    def actions_of(self, stage: str) -> Iterator[ActionRecord]:
        """The actions of a stage, newest first; asks for several at once."""
        marks = self._newest_first(f"refs/stages/{stage}")
        for start in range(0, len(marks), AT_ONCE):
            keys = [mark.name.rpartition("/")[2] for mark in marks[start : start + AT_ONCE]]
            found = [action for action in in_threads(self.action, keys) if action]
            yield from sorted(found, key=lambda action: action.ended, reverse=True)  # S3 tells whole seconds

    def artifacts(self) -> list[str]:
        """The digests of the artifacts that a stage made."""
        return [f"sha256:{name}" for name in self.objects.folders("manifests")]

    def taken_in(self) -> list[str]:
        """The names of the trees that users handed in."""
        return [_stem(entry.name) for entry in self.objects.entries("refs/taken-in")]

    def note_taken_in(self, tree: str, paths: Sequence[str]) -> None:
        """Notes where a tree was first taken in from."""
        self.objects.create(f"refs/taken-in/{tree}.json", _json({"paths": list(paths)}))

    def taken_in_from(self, tree: str) -> list[str]:
        """The paths that a tree was taken in from; none if it was not."""
        return list((self._read(f"refs/taken-in/{tree}.json") or {}).get("paths", ()))

    def manifests(self, digest: str) -> list[Manifest]:
        """Every manifest of an artifact, newest first."""
        names = [entry.name for entry in self.objects.entries(f"manifests/{digest.removeprefix('sha256:')}")]
        manifests = [Manifest.from_json(record) for record in in_threads(self._read, names) if record]
        return sorted(manifests, key=lambda manifest: manifest.ended, reverse=True)

    def save_run(self, record: Mapping[str, Any]) -> None:
        """Keeps the record of a run under its `id`."""
        self.objects.put(f"runs/{check_run_id(record)}.json", _json(record))

    def run(self, name: str) -> dict[str, Any]:
        """The record of a run, by its id or the beginning of it."""
        names = [_stem(entry.name) for entry in self.objects.entries("runs")]
        found = [run for run in names if run == name] or [run for run in names if name and run.startswith(name)]
        if len(found) != 1:
            raise UnknownReference(which_run(name, found or names, ambiguous=bool(found)))
        return self._read(f"runs/{found[0]}.json") or {}

    def runs(self) -> list[dict[str, Any]]:
        """The records of all runs, newest first."""
        names = [entry.name for entry in self._newest_first("runs")]
        return [record for record in in_threads(self._read, names) if record]

    def _newest_first(self, folder: str) -> list[Entry]:
        return sorted(self.objects.entries(folder), key=lambda entry: (entry.modified, entry.name), reverse=True)

    def _read(self, name: str) -> dict[str, Any] | None:
        data = self.objects.get(name)
        try:
            record: dict[str, Any] | None = json.loads(data) if data is not None else None
        except ValueError as error:
            logger.warning("%s/%s cannot be read and is passed over: %s", self.objects.location, name, error)
            return None
        return record


def _action(key: str) -> str:
    return f"actions/{key}.json"


def _stem(name: str) -> str:
    return name.rpartition("/")[2].removesuffix(".json")


def _json(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, indent=1, ensure_ascii=False).encode()

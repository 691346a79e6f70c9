"""The store's records, one JSON file each: actions by key, manifests by artifact, runs by id."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.artifacts.disk import write_atomically
from stages.artifacts.manifest import ActionRecord, Manifest
from stages.artifacts.workspace import Workspace
from stages.errors import UnknownReference

__all__ = ["Records", "check_run_id", "which_run"]

logger = logging.getLogger("martlet.store")


class Records:
    """The folders `actions/`, `manifests/`, `refs/` and `runs/`; a record that cannot be read counts as not there."""

    def __init__(self, root: Path, workspace: Workspace) -> None:
        """`root` is the store's."""
        self.root = root
        self.workspace = workspace

    def action(self, key: str) -> ActionRecord | None:
        """The record that answers a key, whether or not its artifact is whole."""
        record = self._read(self.root / "actions" / f"{key}.json")
        try:
            return ActionRecord.from_json(record) if record else None
        except (KeyError, TypeError):
            logger.warning("the record of action %s is of another format", key)
            return None

    def write(self, manifest: Manifest) -> ActionRecord:
        """Writes the manifest and, last, the action that makes it count."""
        artifact = manifest.artifact.digest.removeprefix("sha256:")
        self._write(self.root / "manifests" / artifact / f"{manifest.key}.json", manifest.to_json())
        mark = self.root / "refs" / "stages" / manifest.stage / manifest.key
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        action = ActionRecord.of(manifest)
        self._write(self.root / "actions" / f"{manifest.key}.json", action.to_json())
        return action

    def actions_of(self, stage: str) -> Iterator[ActionRecord]:
        """The actions of a stage, newest first."""
        try:
            with os.scandir(self.root / "refs" / "stages" / stage) as entries:
                marks = sorted(((entry.stat().st_mtime_ns, entry.name) for entry in entries), reverse=True)
        except FileNotFoundError:
            return
        for _, key in marks:
            if action := self.action(key):
                yield action

    def artifacts(self) -> list[str]:
        """The digests of the artifacts that a stage made."""
        return [f"sha256:{name}" for name in self._names("manifests")]

    def taken_in(self) -> list[str]:
        """The names of the trees that users handed in."""
        return [name.removesuffix(".json") for name in self._names("refs/taken-in")]

    def taken_in_from(self, tree: str) -> list[str]:
        """The paths that a tree was taken in from; none if it was not."""
        record = self._read(self.root / "refs" / "taken-in" / f"{tree}.json")
        return list((record or {}).get("paths", ()))

    def manifests(self, digest: str) -> list[Manifest]:
        """Every manifest of an artifact, newest first."""
        folder = f"manifests/{digest.removeprefix('sha256:')}"
        records = [self._read(self.root / folder / name) for name in self._names(folder)]
        manifests = [Manifest.from_json(record) for record in records if record]
        return sorted(manifests, key=lambda manifest: manifest.ended, reverse=True)

    def save_run(self, record: Mapping[str, Any]) -> None:
        """Keeps the record of a run under its `id`."""
        self._write(self.root / "runs" / f"{check_run_id(record)}.json", record)

    def run(self, name: str) -> dict[str, Any]:
        """The record of a run, by its id or the beginning of it."""
        names = [run.removesuffix(".json") for run in self._names("runs")]
        found = [run for run in names if run == name] or [run for run in names if name and run.startswith(name)]
        if len(found) != 1:
            raise UnknownReference(which_run(name, found or names, ambiguous=bool(found)))
        return self._read(self.root / "runs" / f"{found[0]}.json") or {}

    def runs(self) -> list[dict[str, Any]]:
        """The records of all runs, newest first."""
        paths = [self.root / "runs" / name for name in self._names("runs")]
        paths.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        return [record for path in paths if (record := self._read(path))]

    def _names(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(self.root / folder))  # noqa: PTH208 - names, not paths
        except FileNotFoundError:
            return []

    def _write(self, path: Path, record: Mapping[str, Any]) -> None:
        data = json.dumps(record, indent=1, ensure_ascii=False).encode()
        write_atomically(path, data, self.workspace.path())

    @staticmethod
    def _read(path: Path) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be read and is passed over: %s", path, error)
            return None
        return record


def check_run_id(record: Mapping[str, Any]) -> str:
    """The id of a run's record, which is to be a name.

    Raises:
        ValueError: it cannot be one.
    """
    name = str(record["id"])
    if not re.fullmatch(r"[\w.-]{1,128}", name) or name.startswith("."):
        raise ValueError(f"a run's id is made of letters, digits, -, _ and ., not {name!r}")
    return name


def which_run(name: str, names: list[str], *, ambiguous: bool) -> str:
    """The line for a run that is not known, or not one."""
    choices = ", ".join(names[-5:]) or "none was made yet"
    if ambiguous:
        return f"run {name!r} is ambiguous: {choices}"
    return f"unknown run {name!r}. Choose from: {choices}"

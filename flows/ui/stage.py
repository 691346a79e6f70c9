"""The page of one stage in the Prefect UI: what came of it, its pictures and report, where to look at it."""

from __future__ import annotations

import base64
import logging
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.ui.words import facts, figure, headline, label, seconds_text, table
from stages.artifacts.describe import size_text
from stages.artifacts.manifest import Manifest
from stages.artifacts.reference import ArtifactRef
from stages.artifacts.store import Store
from stages.errors import MartletError
from stages.run import StageResult

__all__ = ["Seen", "live_page", "manifest_of", "stage_page", "verdict"]

REPORT = "report.md"
MAX_PICTURE_BYTES = 500_000

logger = logging.getLogger("martlet.ui")


@dataclass
class Seen:
    """What a running stage has reported.

    Attributes:
        step: of the newest metrics.
        metrics: the newest of each.
        pictures: PNGs in base64, by name.
        reports: Markdown, by name.
        is_newer: whether something of it is not on the page yet.
    """

    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    reports: dict[str, str] = field(default_factory=dict)
    is_newer: bool = False


def live_page(seen: Seen) -> str:
    """The page while the stage runs."""
    parts = [_picture(name, data) for name, data in seen.pictures.items()]
    rows = [[label(name), figure(name, value)] for name, value in seen.metrics.items()]
    if seen.step is not None:
        parts.append(table([f"at step {seen.step:,}", ""], rows))
    parts += [*seen.reports.values(), "The stage is running. Reload the page to see it go on."]
    return "\n\n".join(part for part in parts if part)


def stage_page(result: StageResult, store: Store) -> tuple[str, str]:
    """The page of a finished stage, and the sentence that stands above it and for it in lists.

    Pictures and reports are those in the store, so that a hit, or a run on another machine, has them too.
    """
    manifest = manifest_of(result.artifact, result.key, store)
    report = _report(result, store)
    parts = [_picture(name, data) for name, data in _pictures(result, store)]
    parts += [report or facts(result.metrics), _making(result, manifest), _commands(result)]
    sentence = " · ".join(part for part in (headline(result.metrics), verdict(result, manifest)) if part)
    return "\n\n".join(part for part in parts if part), sentence


def manifest_of(artifact: ArtifactRef, key: str | None, store: Store) -> Manifest | None:
    """The manifest of the run that answered a key: this one, or a former one."""
    return next((found for found in store.manifests(artifact) if found.key == key), None)


def verdict(result: StageResult, manifest: Manifest | None) -> str:
    """`ran in 12.3 s`, `cached, which saved 12.3 s`."""
    if result.status != "cached":
        return f"{result.status} in {seconds_text(result.seconds)}"
    return "cached" + (f", which saved {seconds_text(manifest.seconds)}" if manifest else "")


def _making(result: StageResult, manifest: Manifest | None) -> str:
    """How it was made: seconds, memory, machine; on a hit, those of the run that the cache saved."""
    saved = "0 s: nothing like it was in the store"
    rows = [["seconds", seconds_text(result.seconds)]]
    if result.status == "cached":
        saved = f"{seconds_text(manifest.seconds)}, which it took on {_when(manifest)}" if manifest else "not known"
        rows = [["seconds", f"{seconds_text(result.seconds)}, to look it up"]]
    rows.append(["saved by the cache", saved])
    memory = result.peak_memory_bytes or (manifest.peak_memory_bytes if manifest else None)
    if memory:
        rows.append(["peak memory", size_text(memory)])
    rows.append(
        ["result", f"{result.artifact.kind} `{result.artifact.digest[:19]}`, {size_text(result.artifact.size)}"]
    )
    rows += [[f"from {name}", _reference(name, ref)] for name, ref in result.inputs.items()]
    if manifest:
        rows.append(["machine", _machine(manifest.machine)])
    return table(["run", result.status], rows)


def _reference(name: str, ref: ArtifactRef) -> str:
    kind = "" if ref.kind == name else f"{ref.kind} "
    return f"{kind}`{ref.digest[:19]}`, {size_text(ref.size)}"


def _when(manifest: Manifest) -> str:
    return f"{manifest.ended[:16].replace('T', ' ')} UTC"


def _machine(machine: Any) -> str:
    devices = ", ".join(machine.get("gpus") or []) or f"{machine.get('processor')}, {machine.get('cores')} cores"
    return f"{machine.get('host')} ({devices})"


def _pictures(result: StageResult, store: Store) -> list[tuple[str, str]]:
    """The pictures kept beside the artifact, in base64."""
    if result.attachments is None:
        return []
    try:
        paths = [
            file.path
            for file in store.tree(result.attachments).files
            if file.path.endswith(".png") and file.size <= MAX_PICTURE_BYTES
        ]
        return [(Path(path).stem, base64.b64encode(_read(store, result.attachments, path)).decode()) for path in paths]
    except MartletError as error:
        logger.warning("%s: its pictures cannot be shown: %s", result.stage, error)
        return []


def _report(result: StageResult, store: Store) -> str:
    """The text of a report, under headings that do not compete with the page's own."""
    if result.artifact.kind != "report":
        return ""
    try:
        text = _read(store, result.artifact, REPORT).decode()
    except MartletError as error:
        logger.warning("%s: its report cannot be shown: %s", result.stage, error)
        return ""
    return "\n".join(_below_the_page(line) for line in text.splitlines())


def _below_the_page(line: str) -> str:
    """A line of a report: its headings do not compete with the page's, its bytes get a unit."""
    if bytes_of := re.fullmatch(r"\| (.*) bytes \| (\d+) \|", line):
        return f"| {bytes_of[1]} | {size_text(int(bytes_of[2]))} |"
    return f"#{line}" if line.startswith("#") else line


def _read(store: Store, reference: ArtifactRef | str, path: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="martlet-ui-") as folder:
        store.copy_out(reference, Path(folder), (path,))
        return (Path(folder) / path).read_bytes()


def _picture(name: str, data: str) -> str:
    # Prefect's own image artifact prints the whole data: URL below the picture.
    return f"![{name}](data:image/png;base64,{data})"


def _commands(result: StageResult) -> str:
    digest = result.artifact.digest[:19]
    lines = [f"martlet artifacts show {digest}", f"martlet artifacts lineage {digest}"]
    lines += [f"martlet artifacts export {digest} FOLDER", f"martlet rerun {result.stage} --artifact {digest}"]
    return "\n".join(["```", *lines, "```"])

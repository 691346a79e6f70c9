"""`martlet artifacts list|show|lineage|diff|verify|export`: what is in the store, where it came from, is it whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.commands.common import split_json, take_options
from flows.commands.rows import row_text, shown_row
from stages.artifacts.describe import describe_ref, list_artifacts, show_artifact, size_text
from stages.artifacts.key import compact
from stages.artifacts.lineage import diff, lineage, lineage_text
from stages.artifacts.reference import KINDS, ArtifactRef
from stages.artifacts.store import Store, open_store
from stages.artifacts.verify import verify
from stages.errors import ArgumentsError, DataError, UnknownReference

__all__ = ["main"]

USAGE = """usage: martlet artifacts list [KIND]        everything in the store, newest first
       martlet artifacts show DIGEST       its files, what made it and from what; of a dataset or tokens, a row too
                          [--row N]        (the first one, or row N from 0), with what is trained in colour
       martlet artifacts lineage DIGEST    all that it came from
       martlet artifacts diff A B          how two differ, and why
       martlet artifacts verify [DIGEST]   reads every byte again: is it whole?
       martlet artifacts export DIGEST DIR copies it out as a plain folder

A digest may be cut short to 8 digits. --json prints one JSON value."""


def main(_command: str, argv: list[str]) -> int:
    """Reads the store and prints; only `export` writes, into a folder of the user's."""
    argv, as_json = split_json(argv)
    argv, options = take_options(argv, "--row")
    if not argv or "--help" in argv or "-h" in argv:
        print(USAGE)
        return 0
    name, *words = argv
    if name not in ACTIONS:
        raise ArgumentsError(f"martlet artifacts has no {name!r}. Choose from: {', '.join(ACTIONS)}")
    action, least, most = ACTIONS[name]
    if not least <= len(words) <= most:
        line = next(line for line in USAGE.splitlines() if f"artifacts {name}" in line)
        raise ArgumentsError(f"wrong number of words after {name}: {' '.join(line.split()).removeprefix('usage: ')}")
    if (row := options["--row"]) is not None:
        if name != "show" or not row.isdigit():
            raise ArgumentsError(f"`--row {row}` is a whole number from 0, for `martlet artifacts show`")
        words = [*words, row]
    return action(open_store(), words, as_json)


def _print(value: Any, text: Callable[[], str], as_json: bool) -> None:
    print(json.dumps(value) if as_json else text())


def _list(store: Store, words: list[str], as_json: bool) -> int:
    if words and words[0] not in KINDS:
        raise ArgumentsError(f"no kind of artifact is called {words[0]!r}. Choose from: {', '.join(KINDS)}")
    records = [record for record in list_artifacts(store) if not words or record["kind"] == words[0]]

    def text() -> str:
        lines = []
        for record in records:
            origin = record["stage"] or f"from {' '.join(record['taken_in_from']) or 'unknown'}"
            made = str(record["made"])[:16].replace("T", " ")
            digest = record["digest"][:19]
            lines.append(f"{record['kind']:<11} {digest}  {size_text(record['size']):>8}  {made:<16}  {origin}")
        return "\n".join(lines) if lines else f"nothing in the store {store.location} yet"

    _print(records, text, as_json)
    return 0


def _show(store: Store, words: list[str], as_json: bool) -> int:
    reference = store.find(words[0])
    record = show_artifact(store, reference)
    if reference.kind in ("dataset", "tokens"):
        record |= _row(store, reference, words[1:])
    elif len(words) > 1:
        raise ArgumentsError(f"`--row {words[1]}`: a {reference.kind} has no rows, only a dataset and tokens have")

    def text() -> str:
        lines = [f"{record['kind']} {record['digest']} ({size_text(record['size'])})"]
        lines.append("whole" if record["is_whole"] else "DAMAGED: `martlet artifacts verify` says where")
        for manifest in record["manifests"]:
            lines += ["", f"made by {manifest['stage']}, {manifest['ended'][:19]} UTC, {manifest['seconds']:.1f} s"]
            lines += [f"  {name} = {compact(value)}" for name, value in manifest["body"]["arguments"].items()]
            lines += [f"  from {name}: {ref['kind']} {ref['digest'][:19]}" for name, ref in manifest["inputs"].items()]
            lines += [f"  {name}: {compact(value)}" for name, value in manifest["metrics"].items()]
        lines += [f"taken in from {path}" for path in record["taken_in_from"]]
        lines += ["", *(f"{size_text(file['size']):>8}  {file['path']}" for file in record["files"])]
        if "shown" in record:
            lines += ["", row_text(record["shown"])]
        return "\n".join(lines)

    _print(record, text, as_json)
    return 0


def _row(store: Store, reference: ArtifactRef, words: list[str]) -> dict[str, Any]:
    """The row asked for; the first one, if it can be shown, where none was."""
    try:
        return {"shown": shown_row(store, reference, int(words[0]) if words else 0)}
    except (DataError, UnknownReference):
        if words:
            raise
        return {}


def _lineage(store: Store, words: list[str], as_json: bool) -> int:
    nodes = lineage(store, store.find(words[0]))
    _print([node.to_json() for node in nodes], lambda: lineage_text(nodes), as_json)
    return 0


def _diff(store: Store, words: list[str], as_json: bool) -> int:
    difference = diff(store, store.find(words[0]), store.find(words[1]))
    _print(difference.to_json(), lambda: str(difference), as_json)
    return 0


def _verify(store: Store, words: list[str], as_json: bool) -> int:
    result = verify(store, [store.find(words[0])] if words else None)

    def text() -> str:
        summary = f"{result.trees} trees, {result.blobs} files, {size_text(result.bytes)} read: "
        problems = [str(problem) for problem in result.problems]
        return "\n".join([*problems, summary + (f"{len(problems)} damaged or missing" if problems else "all whole")])

    _print(result.to_json(), text, as_json)
    return 1 if result.problems else 0


def _export(store: Store, words: list[str], as_json: bool) -> int:
    reference, target = store.find(words[0]), Path(words[1])
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ArgumentsError(f"{target} exists and is not an empty folder: name another")
    store.copy_out(reference, target)
    _print({**reference.to_json(), "path": str(target)}, lambda: f"{describe_ref(reference)} → {target}", as_json)
    return 0


Action = Callable[[Store, list[str], bool], int]
ACTIONS: dict[str, tuple[Action, int, int]] = {
    "list": (_list, 0, 1),
    "show": (_show, 1, 1),
    "lineage": (_lineage, 1, 1),
    "diff": (_diff, 2, 2),
    "verify": (_verify, 0, 1),
    "export": (_export, 2, 2),
}

"""The pages of a whole run in the Prefect UI: `show_run(record, store)` makes its summary and its model card.

Called inside the flow run, when the record is complete, also of a run that has failed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from flows.cost import cost_line, money
from flows.record import RunRecord, StageRecord
from flows.ui.card import PRODUCTS, evaluations, model_card
from flows.ui.stage import manifest_of
from flows.ui.words import seconds_text, table
from stages.artifacts.describe import size_text
from stages.artifacts.manifest import Manifest
from stages.artifacts.store import Store

__all__ = ["show_run", "summary"]

logger = logging.getLogger("martlet.ui")


def show_run(record: RunRecord, store: Store) -> None:
    """Shows the summary of a run, and the card of the model that it made, if it made one."""
    from prefect.runtime import flow_run

    from flows.ui.board import Board

    board, name = Board(), flow_run.name or record.flow
    try:
        manifests = _manifests(record, store)
        if len(record.stages) > 1 or not record.ok:  # a stage by itself has its page
            board.show("summary", "markdown", summary(record, manifests), f"{name}: {_sentence(record)}")
        if record.ok and (card := model_card(record, manifests)):
            board.show("model-card", "markdown", card, f"{name}: what it is, what it was made of, how good it is")
    except Exception as error:  # the run is over and kept: what goes wrong here costs only a page
        logger.warning("the run cannot be shown: %s", error)
    board.flush()


def _manifests(record: RunRecord, store: Store) -> dict[str, Manifest]:
    """The manifest of each stage's result, by the stage's title."""
    found = {
        line.title: manifest_of(line.artifact, line.key, store) for line in record.stages if line.artifact is not None
    }
    return {title: manifest for title, manifest in found.items() if manifest}


def summary(record: RunRecord, manifests: Mapping[str, Manifest]) -> str:
    """All stages in a table, what the cache saved, where the output is; of a run that failed, how to go on."""
    parts = [_where(record)]
    if not record.ok:
        parts.append(_how_to_go_on(record))
    currency = (record.cost or {}).get("currency") or ""
    rows = [_row(line, manifests.get(line.title)) for line in record.stages]
    headers = [
        "stage",
        "",
        "took",
        "saved",
        "memory",
        f"cost,\u00a0{currency}" if currency else "cost",
        "result",
        "size",
    ]
    parts += [table(headers, rows, right=(2, 3, 4, 5, 7)), evaluations(record)]
    skipped = [f"- {line.title}: {line.reason}" for line in record.stages if line.status == "skipped"]
    if skipped:
        parts.append("\n".join(["Left out:", "", *skipped]))
    if record.ok:
        parts.append(f"```\nmartlet rerun STAGE --run {record.id[:8]}\n```")
    return "\n\n".join(part for part in parts if part)


def _sentence(record: RunRecord) -> str:
    """`done in 61.2 s, 0.05 USD; the cache saved 12.0 s`."""
    if not record.ok:
        return f"failed after {seconds_text(record.seconds)}"
    stages = [line for line in record.stages if line.status != "skipped"]
    cached = sum(line.status == "cached" for line in stages)
    found = f"; {cached} of {len(stages)} stages were in the store" if cached else ""
    cost = f"; stages took {cost_line(record.cost)}" if record.cost else ""
    return f"done in {seconds_text(record.seconds)}{found}{cost}"


def _where(record: RunRecord) -> str:
    """The folder with the results, or what brings them out of the store."""
    if record.output_dir:
        return f"Output: `{record.output_dir}`"
    made = [line.artifact for line in record.stages if line.stage in PRODUCTS and line.artifact]
    if not made:
        return ""
    return f"Output: in the store; a folder of it is made by `martlet artifacts export {made[-1].digest[:19]} FOLDER`"


def _how_to_go_on(record: RunRecord) -> str:
    lines = ["> " + line for line in (record.error or "it was ended").splitlines()]
    failed = next((line.stage for line in record.stages if line.status == "failed"), None)
    if failed and record.exit_code != 2:
        lines += ["", f"Once mended:\n\n```\nmartlet rerun {failed} --run {record.id[:8]}\n```"]
    return "\n".join(lines)


def _row(line: StageRecord, manifest: Manifest | None) -> list[str]:
    if line.artifact is None:
        return [line.title, line.status, "", "", "", "", "", ""]
    is_cached = line.status == "cached"
    memory = manifest.peak_memory_bytes if manifest else None
    return [
        line.title,
        line.status,
        "" if is_cached else seconds_text(line.seconds),
        seconds_text(manifest.seconds) if manifest and is_cached else "",
        size_text(memory) if memory else "",
        money(line.cost, "").strip() if line.cost else "",
        f"{line.artifact.kind} `{line.artifact.digest.removeprefix('sha256:')[:12]}`",
        size_text(line.artifact.size),
    ]

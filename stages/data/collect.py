"""Reads datasets into standard rows on disk and keeps account of the rows that are no use.

`for dataset in Collector(arguments, context).read(specs, place): dataset.rows, dataset.num_rows`
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from stages.context import Context
from stages.data.readers import Malformed
from stages.data.rows import RowError, Standardizer
from stages.data.sources import Workplace, open_dataset
from stages.data.spec import DatasetSpec
from stages.errors import DataError, Interrupted

if TYPE_CHECKING:
    from stages.data.table import RowWriter, StoredRows

__all__ = ["Collector", "Dataset"]

NAMED_DROPS = 10
KEPT_DROPS = 1000


@dataclass(frozen=True)
class Dataset:
    """The usable rows of one dataset.

    Attributes:
        spec: what was asked for.
        title: its name for messages: the file where it is one, the hub's id.
        rows: on disk.
        num_rows: more than 0.
    """

    spec: DatasetSpec
    title: str
    rows: StoredRows
    num_rows: int


@dataclass
class Collector:
    """Reads datasets; the draws of their rows and the account of dropped ones go on from one to the next.

    Attributes:
        strict: a malformed row is an error instead of being dropped.
        standardizer: reads the formats.
        context: gets progress, and the attachment `dropped.jsonl`: the first thousand dropped rows, each with reason.
    """

    strict: bool
    standardizer: Standardizer
    context: Context
    num_read: int = 0
    num_dropped: int = 0
    reasons: list[str] = field(default_factory=list)

    def read(self, specs: Sequence[DatasetSpec], place: Workplace) -> Iterator[Dataset]:
        """The datasets in turn.

        Raises:
            DataError: a file without one usable row, a malformed row with `strict`.
            StageFailed: a hub or the package index cannot be reached.
            Interrupted: the run was told to stop.
        """
        for number, spec in enumerate(specs):
            share = (number, len(specs))
            yield self._store(spec, place, place.scratch / f"{number}.arrow", share)

    def metrics(self) -> dict[str, Any]:
        """Counts, and the first reasons in words."""
        metrics: dict[str, Any] = {"rows_read": self.num_read, "rows_dropped": self.num_dropped}
        if self.reasons:
            metrics["first_dropped"] = "\n".join(self.reasons)
        return metrics

    def _store(self, spec: DatasetSpec, place: Workplace, path: Path, share: tuple[int, int]) -> Dataset:
        from stages.data.table import RowWriter, StoredRows

        usable: dict[str, int] = {}
        first_reason: dict[str, str] = {}
        with ExitStack() as stack:
            writer = stack.enter_context(RowWriter(path))
            log = stack.enter_context((self.context.attachments / "dropped.jsonl").open("a", encoding="utf-8"))
            for label, batch in open_dataset(spec, place):
                if self.context.stop_requested():
                    raise Interrupted(f"stopped after {self.num_read} rows")
                reasons = self._standardize(label, batch.rows, writer, log)
                usable[label] = usable.get(label, 0) + len(batch.rows) - len(reasons)
                first_reason.setdefault(label, *reasons[:1] or [""])
                done = (share[0] + batch.position) / share[1]
                self.context.reporter.progress(done, 1, f"{self.num_read} rows read, {self.num_dropped} dropped")
        _remove_if_empty(self.context.attachments / "dropped.jsonl")
        for label, count in usable.items():
            if not count:
                raise DataError(f"{label} has no row that can be used. {first_reason[label]}")
        title = next(iter(usable), str(spec)) if len(usable) < 2 else f"{len(usable)} files"
        return Dataset(spec, title, StoredRows(path), writer.num_rows)

    def _standardize(
        self, label: str, rows: Sequence[tuple[int, dict[str, Any] | Malformed]], writer: RowWriter, log: IO[str]
    ) -> list[str]:
        """Writes the rows that can be used; of the others, gives the reasons."""
        reasons = []
        for number, row in rows:
            try:
                writer.write(self.standardizer.standardize(row))
            except RowError as error:
                reasons.append(f"{label} row {number}: {error}")
                if self.strict:
                    raise DataError(reasons[-1]) from None
                self._drop(label, number, str(error), log)
        self.num_read += len(rows)
        return reasons

    def _drop(self, label: str, number: int, reason: str, log: IO[str]) -> None:
        self.num_dropped += 1
        if self.num_dropped <= NAMED_DROPS:
            self.reasons.append(f"{label} row {number}: {reason}")
            self.context.logger.warning("dropped %s", self.reasons[-1])
        if self.num_dropped <= KEPT_DROPS:
            log.write(json.dumps({"file": label, "row": number, "reason": reason}, ensure_ascii=False) + "\n")


def _remove_if_empty(path: Path) -> None:
    if not path.stat().st_size:
        path.unlink()

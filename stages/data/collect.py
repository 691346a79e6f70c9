"""Reads datasets into standard rows on disk and keeps account of the rows that are no use.

`for dataset in Collector(strict, RowMaker(42), context).read(specs, place): dataset.rows, dataset.num_rows`
"""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from stages.context import Context
from stages.data.readers import Batch
from stages.data.row_maker import RowMaker
from stages.data.rows import RowError
from stages.data.sources import Workplace, open_dataset
from stages.data.spec import DatasetSpec
from stages.errors import DataError, Interrupted

if TYPE_CHECKING:
    from stages.data.table import RowWriter, StoredRows

__all__ = ["Collector", "Dataset"]

NAMED_DROPS = 10
KEPT_DROPS = 1000
HAND_IN_MEDIA = ". Give `--dataset` the folder that holds rows and media, and the media go wherever the rows go"


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
        maker: reads the formats.
        context: gets progress, and the attachment `dropped.jsonl`: the first thousand dropped rows, each with reason.
    """

    strict: bool
    maker: RowMaker
    context: Context
    num_read: int = 0
    num_dropped: int = 0
    num_left_out: int = 0
    reasons: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def read(self, specs: Sequence[DatasetSpec], place: Workplace) -> Iterator[Dataset]:
        """The datasets in turn.

        Raises:
            DataError: a file without one usable row, a malformed row with `strict`, a placeholder for the model's name
                that would stay.
            StageFailed: a hub or the package index cannot be reached.
            Interrupted: the run was told to stop.
        """
        for number, spec in enumerate(specs):
            share = (number, len(specs))
            yield self._store(spec, place, place.scratch / f"{number}.arrow", share)

    def finish(self) -> dict[str, Any]:
        """Counts, and the first reasons in words; says what was given in vain."""
        self.maker.report(self.context.logger)
        metrics: dict[str, Any] = {"rows_read": self.num_read, "rows_dropped": self.num_dropped}
        if self.num_left_out:
            metrics["rows_left_out_by_plugin"] = self.num_left_out
        for kind, count in sorted(self.kinds.items()):
            metrics[f"rows_dropped_{kind.replace(' ', '_')}"] = count
        if self.reasons:
            metrics["first_dropped"] = "\n".join(self.reasons)
        return metrics

    def _store(self, spec: DatasetSpec, place: Workplace, path: Path, share: tuple[int, int]) -> Dataset:
        from stages.data.table import RowWriter, StoredRows

        usable: dict[str, int] = {}
        first_reason: dict[str, str] = {}
        with ExitStack() as stack:
            writer = stack.enter_context(RowWriter(path))
            log = stack.enter_context(
                (self.context.attachments / "dropped.jsonl").open("a", encoding="utf-8", errors="backslashreplace")
            )
            for label, batch in open_dataset(spec, place):
                if self.context.stop_requested():
                    raise Interrupted(f"stopped after {self.num_read} rows")
                written = writer.num_rows
                with _no_search_for_cycles():
                    reason = self._make(label, batch, writer, log)
                usable[label] = usable.get(label, 0) + writer.num_rows - written
                if reason is not None:
                    first_reason.setdefault(label, reason)
                done = (share[0] + batch.position) / share[1]
                self.context.reporter.progress(done, 1, f"{self.num_read} rows read, {self.num_dropped} dropped")
        _remove_if_empty(self.context.attachments / "dropped.jsonl")
        for label, count in usable.items():
            if not count:
                why = first_reason.get(label, "The plugin's function leaves out all of them")
                hint = HAND_IN_MEDIA if set(self.kinds) == {"media"} else ""
                raise DataError(f"{label} has no row that can be used. {why}{hint}")
        title = next(iter(usable), str(spec)) if len(usable) < 2 else f"{len(usable)} files"
        return Dataset(spec, title, StoredRows(path), writer.num_rows)

    def _make(self, label: str, batch: Batch, writer: RowWriter, log: IO[str]) -> str | None:
        """Writes the rows that can be used; of the others, gives the first reason."""
        first = None
        for number, row in batch.rows:
            try:
                made = self.maker.make(row, batch.reading)
                if made is None:
                    self.num_left_out += 1
                else:
                    writer.write(made)
            except RowError as error:
                reason = f"{label} row {number}: {error}"
                if self.strict:
                    raise DataError(reason) from None
                first = first or reason
                self._drop(label, number, error, log)
            except DataError as error:
                raise DataError(f"{label} row {number}: {error}") from error
        self.num_read += len(batch.rows)
        return first

    def _drop(self, label: str, number: int, error: RowError, log: IO[str]) -> None:
        self.num_dropped += 1
        self.kinds[error.kind] += 1
        if self.num_dropped <= NAMED_DROPS:
            self.reasons.append(f"{label} row {number}: {error}")
            self.context.logger.warning("dropped %s", self.reasons[-1])
        if self.num_dropped <= KEPT_DROPS:
            entry = {"file": label, "row": number, "kind": error.kind, "reason": str(error)}
            log.write(json.dumps(entry, ensure_ascii=False) + "\n")


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Rows have no cycles, but the garbage collector would go through all of them again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _remove_if_empty(path: Path) -> None:
    if not path.stat().st_size:
        path.unlink()

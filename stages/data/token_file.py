"""Token ids and labels on disk, opened by memory map: `with TokenWriter(path) as writer: writer.write(batch)`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stages.data.encode import NOT_TRAINED, Batch, Part

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["TokenWriter", "write_packs"]


class TokenWriter:
    """Writes rows to an Arrow IPC stream; `pyarrow.ipc.open_stream(pyarrow.memory_map(path))` reads it without a copy.

    Columns: input_ids and labels (lists of int32), length (int32), row (int64: which row of the dataset, from 0); where
    asked for: loss_scale (list of float32), rejected_input_ids and rejected_labels (null for a row without a rejected
    answer), label (int64). Rows that are classified have no labels, but a label. No file is left if there are no rows.

    Attributes:
        lengths: tokens of each row written.
        num_trained: tokens of all rows that have a label.
        num_truncated: rows that were longer.
    """

    def __init__(
        self,
        path: Path,
        *,
        weighted: bool = False,
        preference: bool = False,
        labelled: bool = False,
        classified: bool = False,
    ) -> None:
        self.path = path
        self.lengths: list[int] = []
        self.num_trained = 0
        self.num_truncated = 0
        self._weighted, self._preference = weighted, preference
        self._labelled, self._classified = labelled, classified
        self._file: pa.ipc.RecordBatchStreamWriter | None = None

    def write(self, batch: Batch) -> None:
        """Adds rows."""
        import pyarrow as pa

        if not len(batch.rows):
            return
        record = pa.RecordBatch.from_pydict(self._columns(batch))
        if self._file is None:
            self._file = pa.ipc.new_stream(str(self.path), record.schema)
        self._file.write_batch(record)
        self.lengths.extend(record.column("length").to_pylist())
        self.num_trained += int((batch.chosen.labels != NOT_TRAINED).sum())
        self.num_truncated += batch.num_truncated

    def _columns(self, batch: Batch) -> dict[str, pa.Array]:
        import numpy as np
        import pyarrow as pa

        chosen = batch.chosen
        columns = {
            "input_ids": _lists(chosen, chosen.ids),
            "labels": _lists(chosen, chosen.labels),
            "length": pa.array(np.diff(chosen.offsets).astype(np.int32)),
            "row": pa.array(batch.rows - 1),
        }
        if self._classified:
            del columns["labels"]
        if self._weighted:
            assert chosen.weights is not None
            columns["loss_scale"] = _lists(chosen, chosen.weights)
        if self._preference:
            rejected = batch.rejected
            if rejected is None:
                nothing = np.zeros(0, np.int32)
                rejected = Part(nothing, nothing, None, np.zeros(len(batch.rows) + 1, np.int64))
            without = pa.array(np.diff(rejected.offsets) == 0)
            columns["rejected_input_ids"] = _lists(rejected, rejected.ids, without)
            columns["rejected_labels"] = _lists(rejected, rejected.labels, without)
        if self._labelled:
            columns["label"] = pa.array(batch.labels or [None] * len(batch.rows), pa.int64())
        return columns

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._file is not None:
            self._file.close()


def write_packs(packs: list[list[int]], path: Path) -> None:
    """Writes which rows stand together: one column, `rows`, lists of int32 row numbers of the token file, from 0."""
    import pyarrow as pa

    table = pa.table({"rows": pa.array(packs, pa.list_(pa.int32()))})
    with pa.ipc.new_stream(str(path), table.schema) as file:
        file.write_table(table, max_chunksize=65536)


def _lists(part: Part, values: NDArray[np.generic], without: pa.Array | None = None) -> pa.ListArray:
    import numpy as np
    import pyarrow as pa

    return pa.ListArray.from_arrays(pa.array(part.offsets.astype(np.int32)), pa.array(values), mask=without)

"""Standard rows on disk: written as they come, then gathered in any order into Parquet, in bounded memory.

`with RowWriter(scratch / "0.arrow") as writer: writer.write(row)`, then `write_parquet([(rows, indices)], path)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from stages.data.sampling import Indices

__all__ = ["RowWriter", "StoredRows", "standard_schema", "write_parquet"]

ROWS_A_BATCH = 2048


def standard_schema() -> pa.Schema:
    """Every column that a standard row may have; what no row has is left out of the Parquet file."""
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    return pa.schema(
        [
            ("messages", pa.list_(message)),
            ("rejected_response", pa.string()),
            ("label", pa.int64()),
            ("tools", pa.string()),
            ("images", pa.list_(pa.string())),
            ("videos", pa.list_(pa.string())),
            ("audios", pa.list_(pa.string())),
            ("objects", pa.string()),
        ]
    )


class RowWriter:
    """Writes standard rows to an Arrow file, all of whose batches but the last have the same number of rows."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self.path = path
        self.num_rows = 0
        self._schema = standard_schema()
        self._rows: list[Mapping[str, Any]] = []
        self._file = pa.ipc.new_file(str(path), self._schema)

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a row."""
        self._rows.append(row)
        self.num_rows += 1
        if len(self._rows) == ROWS_A_BATCH:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        self._file.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._rows and error is None:
            self._flush()
        self._file.close()


class StoredRows:
    """The rows of an Arrow file that `RowWriter` wrote, mapped into memory."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._num_batches = self._reader.num_record_batches

    @cached_property
    def columns(self) -> set[str]:
        """The columns in which any row has a value."""
        found: set[str] = set()
        for index in range(self._num_batches):
            batch = self._reader.get_batch(index)
            found.update(name for name in batch.schema.names if batch.column(name).null_count < batch.num_rows)
        return found

    def gather(self, indices: Indices) -> pa.Table:
        """The rows at `indices`, in their order."""
        import numpy as np
        import pyarrow as pa

        batch_of = indices // ROWS_A_BATCH
        order = np.argsort(batch_of, kind="stable")
        parts = []
        for number in np.unique(batch_of):
            local = indices[order][batch_of[order] == number] - number * ROWS_A_BATCH
            parts.append(self._reader.get_batch(int(number)).take(pa.array(local)))
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return pa.Table.from_batches(parts).combine_chunks().take(pa.array(back))


def write_parquet(parts: Sequence[tuple[StoredRows, Indices]], path: Path) -> int:
    """Writes the chosen rows of several datasets one after the other.

    Returns:
        The number of rows; with none, no file is written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = [(rows, indices) for rows, indices in parts if len(indices)]
    if not parts:
        return 0
    used = {name for rows, _ in parts for name in rows.columns}
    schema = pa.schema([field for field in standard_schema() if field.name in used])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in _tables(parts):
            writer.write_table(table.select(schema.names), row_group_size=ROWS_A_BATCH)
    return sum(len(indices) for _, indices in parts)


def _tables(parts: Sequence[tuple[StoredRows, Indices]]) -> Iterator[pa.Table]:
    for rows, indices in parts:
        for start in range(0, len(indices), ROWS_A_BATCH):
            yield rows.gather(indices[start : start + ROWS_A_BATCH])

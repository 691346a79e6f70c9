"""Standard rows on disk: written as they come, then gathered in any order into Parquet, in bounded memory.

`with RowWriter(scratch / "0.arrow") as writer: writer.write(row)`, then `write_parquet([(rows, indices)], path)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.data.media import MediaKeeper
from stages.data.rows.columns import MEDIA

if TYPE_CHECKING:
    import pyarrow as pa

    from stages.data.sampling import Indices

__all__ = ["RowWriter", "StoredRows", "standard_schema", "write_parquet"]

ROWS_A_BATCH = 2048
OPTIONAL_FIELDS = ("tool_calls", "loss")


def standard_schema() -> pa.Schema:
    """Every column that a standard row may have; what no row has is left out of the Parquet file."""
    import pyarrow as pa

    message = pa.struct(
        [("role", pa.string()), ("content", pa.string()), ("tool_calls", pa.string()), ("loss", pa.bool_())]
    )
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
        self._file.write_batch(_batch(self._rows, self._schema))
        self._rows = []

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._rows and error is None:
            self._flush()
        self._file.close()


def _batch(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    present = {name for row in rows for name in row}
    columns = [
        pa.array([row.get(field.name) for row in rows], field.type)
        if field.name in present
        else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.record_batch(columns, schema=schema)


class StoredRows:
    """The rows of an Arrow file that `RowWriter` wrote, mapped into memory."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._num_batches = self._reader.num_record_batches

    @cached_property
    def columns(self) -> set[str]:
        """The columns in which any row has a value, and `messages.loss`, `messages.tool_calls` if any message has."""
        found: set[str] = set()
        for index in range(self._num_batches):
            batch = self._reader.get_batch(index)
            found.update(name for name in batch.schema.names if batch.column(name).null_count < batch.num_rows)
            turns = batch.column("messages").values
            found.update(f"messages.{name}" for name in OPTIONAL_FIELDS if turns.field(name).null_count < len(turns))
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
    """Writes the chosen rows of several datasets one after the other, and the media they name to `media/` beside it.

    Returns:
        The number of rows; with none, no file is written.

    Raises:
        DataError: a medium can no longer be read.
    """
    import pyarrow.parquet as pq

    parts = [(rows, indices) for rows, indices in parts if len(indices)]
    if not parts:
        return 0
    used = {name for rows, _ in parts for name in rows.columns}
    schema = _used_schema(used)
    keep = MediaKeeper(path.parent).keep
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in _tables(parts):
            writer.write_table(_fitted(table, schema, keep), row_group_size=ROWS_A_BATCH)
    return sum(len(indices) for _, indices in parts)


def _tables(parts: Sequence[tuple[StoredRows, Indices]]) -> Iterator[pa.Table]:
    for rows, indices in parts:
        for start in range(0, len(indices), ROWS_A_BATCH):
            yield rows.gather(indices[start : start + ROWS_A_BATCH])


def _used_schema(used: set[str]) -> pa.Schema:
    import pyarrow as pa

    whole = standard_schema()
    unused = {name for name in OPTIONAL_FIELDS if f"messages.{name}" not in used}
    message = pa.struct([field for field in whole.field("messages").type.value_type if field.name not in unused])
    fields = [pa.field("messages", pa.list_(message)), *(field for field in whole if field.name != "messages")]
    return pa.schema([field for field in fields if field.name in used])


def _fitted(table: pa.Table, schema: pa.Schema, keep: Callable[[str], str]) -> pa.Table:
    """The columns of the schema; media are kept, and named by where."""
    import pyarrow as pa

    columns = {}
    for field in schema:
        column = table.column(field.name).combine_chunks()
        if field.name == "messages":
            column = _messages(column, field.type)
        elif field.name in MEDIA:
            kept = [None if names is None else [keep(name) for name in names] for names in column.to_pylist()]
            column = pa.array(kept, field.type)
        columns[field.name] = column
    return pa.table(columns, schema=schema)


def _messages(column: Any, kind: pa.ListType) -> pa.ListArray:
    """The messages with only the fields that the type has."""
    import pyarrow as pa

    chunk = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    turns = chunk.values
    fields = list(kind.value_type)
    values = pa.StructArray.from_arrays([turns.field(field.name) for field in fields], fields=fields)
    return pa.ListArray.from_arrays(chunk.offsets, values, type=kind)

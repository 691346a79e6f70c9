"""Standard rows on disk: written as they come, then gathered in any order into Parquet, in bounded memory.

`with RowWriter(scratch / "0.arrow") as writer: writer.write(row)`, then `write_parquet([(rows, indices)], path)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.data.media import MediaKeeper
from stages.data.rows.columns import MEDIA

if TYPE_CHECKING:
    import pyarrow as pa

    from stages.data.sampling import Indices

__all__ = ["RowWriter", "StoredRows", "standard_schema", "write_parquet"]

ROWS_A_BATCH = 2048
GROUP_BYTES = 16_000_000
GATHERED_BYTES = 32_000_000
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
    """Writes standard rows to an Arrow file, in batches of some rows, or fewer where these are long."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self.path = path
        self.num_rows = 0
        self._schema = standard_schema()
        self._rows: list[Mapping[str, Any]] = []
        self._num_characters = 0
        self._file = pa.ipc.new_file(str(path), self._schema)

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a row."""
        self._rows.append(row)
        self.num_rows += 1
        for message in row["messages"]:
            self._num_characters += len(message["content"])
        if len(self._rows) == ROWS_A_BATCH or self._num_characters > GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._file.write_batch(_batch(self._rows, self._schema))
        self._rows = []
        self._num_characters = 0

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
        import numpy as np
        import pyarrow as pa

        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._num_batches = self._reader.num_record_batches
        batches = [self._reader.get_batch(index) for index in range(self._num_batches)]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self._mean_bytes = np.array([batch.nbytes / batch.num_rows for batch in batches])

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

    def groups(self, indices: Indices) -> Iterator[pa.Table]:
        """The rows at `indices`, in their order, as many at a time as a row group of Parquet is to have."""
        edges = self._edges(indices)
        first = 0
        for last in range(
            1, len(edges)
        ):  # gathered many at once: every batch of the file is visited for each gathering
            if last + 1 == len(edges) or edges[last + 1][1] - edges[first][1] > GATHERED_BYTES:
                table = self._gather(indices[edges[first][0] : edges[last][0]])
                for (start, _), (end, _) in pairwise(edges[first : last + 1]):
                    yield table.slice(start - edges[first][0], end - start)
                first = last

    def _edges(self, indices: Indices) -> list[tuple[int, float]]:
        """Where groups begin and end among the indices, and how many bytes are before."""
        import numpy as np

        sizes = np.cumsum(self._mean_bytes[self._batches_of(indices)])
        grid = np.arange(len(indices)) // ROWS_A_BATCH
        is_cut = (np.diff(sizes // GROUP_BYTES) > 0) | (np.diff(grid) > 0)
        cuts = (np.flatnonzero(is_cut) + 1).tolist()
        return [(0, 0.0), *((cut, float(sizes[cut - 1])) for cut in cuts), (len(indices), float(sizes[-1]))]

    def _batches_of(self, indices: Indices) -> Indices:
        return self._starts.searchsorted(indices, side="right") - 1

    def _gather(self, indices: Indices) -> pa.Table:
        import numpy as np
        import pyarrow as pa

        batch_of = self._batches_of(indices)
        order = np.argsort(batch_of, kind="stable")
        numbers, firsts = np.unique(batch_of[order], return_index=True)
        parts = []
        for number, first, last in zip(numbers, firsts, [*firsts[1:], len(order)], strict=True):
            local = indices[order[first:last]] - self._starts[number]
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
        for rows, indices in parts:
            for group in rows.groups(indices):
                writer.write_table(_fitted(group, schema, keep))
    return sum(len(indices) for _, indices in parts)


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

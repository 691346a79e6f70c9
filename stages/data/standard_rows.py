"""Reads standard rows from a dataset artifact: `for rows in read_standard_rows(Path("train.parquet")): …`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["columns_of", "read_standard_rows", "uses_tools"]

ROWS_A_BATCH = 1024


def columns_of(path: Path) -> list[str]:
    """The columns that the rows of a file have.

    Raises:
        DataError: it is no Parquet file of standard rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names: list[str] = pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path.name} is no Parquet file: {str(error).splitlines()[0]}") from None
    if "messages" not in names:
        raise DataError(f"{path.name} holds no standard rows: make them with the stage preprocess")
    return names


def uses_tools(path: Path) -> bool:
    """Whether any row has tools, calls one, or has a turn of one."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        messages = file.schema_arrow.field("messages").type.value_type
        if "tools" in file.schema_arrow.names or any(field.name == "tool_calls" for field in messages):
            return True
        for group in range(file.num_row_groups):
            roles = file.read_row_group(group, ["messages.list.element.role"]).column(0)
            if pc.any(pc.equal(pc.struct_field(pc.list_flatten(roles), "role"), "tool")).as_py():
                return True
    return False


def read_standard_rows(path: Path) -> Iterator[list[dict[str, Any]]]:
    """The rows, some at a time; what a row does not have is absent from it."""
    import pyarrow.parquet as pq

    # By row group: iter_batches over a file keeps what it has read of it.
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            for batch in file.read_row_group(group).to_batches(ROWS_A_BATCH):
                yield _rows(batch)


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Column by column: several times as fast as Arrow's own way of making nested objects."""
    rows: list[dict[str, Any]] = [{"messages": turns} for turns in _messages(batch.column("messages"))]
    for name in batch.schema.names:
        if name == "messages":
            continue
        for row, value in zip(rows, batch.column(name).to_pylist(), strict=True):
            if value is not None:
                row[name] = value
    return rows


def _messages(column: pa.ListArray) -> list[list[dict[str, Any]]]:
    flat = column.flatten()
    names = [field.name for field in flat.type]
    # By way of numpy: Arrow's own to_pylist makes an object of its own for each value first.
    values = [flat.field(name).to_numpy(zero_copy_only=False).tolist() for name in names]
    if names == ["role", "content"]:
        turns = [{"role": role, "content": content} for role, content in zip(*values, strict=True)]
    else:
        turns = [
            {name: one for name, one in zip(names, turn, strict=True) if one is not None}
            for turn in zip(*values, strict=True)
        ]
    ends = column.value_lengths().to_pylist()
    cut, start = [], 0
    for length in ends:
        cut.append(turns[start : start + length])
        start += length
    return cut

"""Token files as the tokenize stage writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

KINDS = {"input_ids": "int32", "labels": "int32", "loss_scale": "float32", "rows": "int32"}


def write_arrow(path: Path, columns: Mapping[str, Sequence[Sequence[Any]]], *, rows_a_batch: int = 2) -> Path:
    """An Arrow stream of lists, in several batches."""
    import pyarrow as pa

    schema = pa.schema([(name, pa.list_(pa.type_for_alias(KINDS[name]))) for name in columns])
    table = pa.table(dict(columns), schema)
    with pa.ipc.new_stream(str(path), table.schema) as file:
        file.write_table(table, max_chunksize=rows_a_batch)
    return path

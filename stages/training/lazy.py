"""Rows that are tokenized when they are needed: `LazyRows(open_standard_rows(path, copy), usable, replaces=True)`."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

    from stages.training.usable import Usable

__all__ = ["LazyRows", "StandardRows", "open_standard_rows"]

ROWS_A_BATCH = 1024


class StandardRows:
    """Standard rows by their number, mapped into memory."""

    def __init__(self, batches: Sequence[pa.RecordBatch]) -> None:
        self._batches = batches
        self._firsts: list[int] = [0, *accumulate(batch.num_rows for batch in batches)]

    def __len__(self) -> int:
        """Number of rows."""
        return self._firsts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row `index`; what has no value is not in it."""
        number = bisect_right(self._firsts, index) - 1
        rows = self._batches[number].slice(index - self._firsts[number], 1).to_pylist()
        row: dict[str, Any] = _without_gaps(rows[0])
        return row


def open_standard_rows(path: Path, copy: Path) -> StandardRows:
    """Opens a Parquet file of standard rows.

    Args:
        path: the file, of which a row cannot be read without its neighbours.
        copy: where its copy is, or is to be, of which it can.

    Raises:
        DataError: it is no Parquet file, or holds no row.
    """
    from stages.training.rows import open_batches

    if not copy.is_file():
        _copy(path, copy)
    rows = StandardRows(list(open_batches(copy, "rows")))
    if not len(rows):
        raise DataError(f"{path.name} holds no row")
    return rows


def _copy(path: Path, copy: Path) -> None:
    """A few row groups at a time, so that memory does not grow with the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    unfinished = copy.with_suffix(f".{os.getpid()}.part")  # another process may be at it too
    try:
        with pq.ParquetFile(path) as file, pa.ipc.new_stream(str(unfinished), file.schema_arrow) as writer:
            for batch in file.iter_batches(ROWS_A_BATCH):
                writer.write_batch(batch)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path.name} is no Parquet file of rows: {str(error).splitlines()[0]}") from None
    unfinished.replace(copy)


def _without_gaps(value: Any) -> Any:
    """What Parquet stores as null for rows, or messages, that lack what others have."""
    if isinstance(value, dict):
        return {name: _without_gaps(one) for name, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_without_gaps(one) for one in value]
    return value


class LazyRows:
    """Rows by their number, encoded when they are asked for."""

    def __init__(self, rows: StandardRows, usable: Usable, *, replaces: bool) -> None:
        """Nothing is encoded yet.

        Args:
            rows: standard rows.
            usable: encodes them.
            replaces: whether a row that cannot be trained is replaced by the next one that can, always the same one.
                Else it becomes a row without labels, which counts for nothing: right for a validation.
        """
        self.rows, self.usable, self.replaces = rows, usable, replaces

    def __len__(self) -> int:
        """Number of rows, those that cannot be trained among them."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row `index`, or what stands for it: see `rows.TokenRows`.

        Raises:
            DataError: no row can be trained.
        """
        if not 0 <= index < len(self.rows):
            raise IndexError(index)
        for offset in range(len(self.rows) if self.replaces else 1):
            number = (index + offset) % len(self.rows)
            item = self.usable(self.rows[number], number + 1)
            if item is not None:
                return item
        if self.replaces:
            raise DataError(f"none of the {len(self.rows)} rows of {self.usable.name} can be trained")
        return _nothing(classified=getattr(self.usable.encoder, "num_labels", None) is not None)


def _nothing(*, classified: bool) -> dict[str, Any]:
    import numpy as np

    from stages.training.rows import IGNORED

    if classified:
        return {"input_ids": np.zeros(1, np.int32), "label": IGNORED}
    return {"input_ids": np.zeros(1, np.int32), "labels": np.full(1, IGNORED, np.int32)}

"""Token ids and labels on disk: `with TokenWriter(path) as writer: writer.write(tokens)`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stages.data.encode import NOT_TRAINED, Tokens

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["TokenWriter"]

ROWS_A_GROUP = 4096


class TokenWriter:
    """Writes rows to Parquet: input_ids and labels (lists of int32) and length (int32). No file if there are no rows.

    Attributes:
        lengths: tokens of each row written.
        num_trained: tokens of all rows that have a label.
        num_truncated: rows that were longer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lengths: list[int] = []
        self.num_trained = 0
        self.num_truncated = 0
        self._rows: list[Tokens] = []
        self._file: pa.parquet.ParquetWriter | None = None

    def write(self, tokens: Tokens) -> None:
        """Adds a row."""
        self._rows.append(tokens)
        self.lengths.append(len(tokens.input_ids))
        self.num_trained += int((tokens.labels != NOT_TRAINED).sum())
        self.num_truncated += tokens.truncated
        if len(self._rows) == ROWS_A_GROUP:
            self._flush()

    def _flush(self) -> None:
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        lengths = np.array([len(tokens.input_ids) for tokens in self._rows], dtype=np.int32)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        columns = {
            "input_ids": _lists(offsets, [tokens.input_ids for tokens in self._rows]),
            "labels": _lists(offsets, [tokens.labels for tokens in self._rows]),
            "length": pa.array(lengths),
        }
        table = pa.table(columns)
        if self._file is None:
            self._file = pq.ParquetWriter(self.path, table.schema, compression="zstd")
        self._file.write_table(table)
        self._rows = []

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._rows and error is None:
            self._flush()
        if self._file is not None:
            self._file.close()


def _lists(offsets: NDArray[np.int32], rows: list[NDArray[np.int32]]) -> pa.ListArray:
    import numpy as np
    import pyarrow as pa

    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(rows)))

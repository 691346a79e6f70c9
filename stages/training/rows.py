"""Tokenized rows as a trainer reads them: `read_rows(Path("tokens/train.parquet"), vocabulary=49152)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["IGNORED", "TokenRows", "collate", "read_rows", "split_by_length"]

IGNORED = -100
"""The label of a token that is not trained."""
PADDING_WORTH_A_CALL = 16
"""On a CPU a call of the model costs about as much as this many tokens (SmolLM2-135M, two cores)."""


@dataclass(frozen=True)
class TokenRows:
    """Rows of different lengths, laid end to end; what it hands out are views.

    Attributes:
        input_ids: token ids of all rows, int32.
        labels: the same, with IGNORED where nothing is trained.
        starts: where each row begins, and, last, where the last one ends.
    """

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row `index`: `input_ids` and `labels`, each of its length."""
        row = slice(self.starts[index], self.starts[index + 1])
        return {"input_ids": self.input_ids[row], "labels": self.labels[row]}

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        lengths: list[int] = (self.starts[1:] - self.starts[:-1]).tolist()
        return lengths

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return len(self.input_ids)

    @property
    def num_labels(self) -> int:
        """Tokens that are trained."""
        return int((self.labels != IGNORED).sum())


def read_rows(path: Path, vocabulary: int) -> TokenRows:
    """Reads a file that the tokenize stage has written.

    Args:
        path: Parquet with the columns `input_ids` and `labels`, lists of int32.
        vocabulary: tokens that the model knows.

    Raises:
        DataError: no row, a column that is missing, a row without a label, or an id that the model does not know.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["input_ids", "labels"])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path.name} is no Parquet file of tokens: {str(error).splitlines()[0]}") from None
    if table.column_names != ["input_ids", "labels"]:
        raise DataError(f"{path.name} has the columns {', '.join(table.column_names)}; input_ids and labels are needed")
    columns = [table.column(name).combine_chunks() for name in ("input_ids", "labels")]
    if not table.num_rows:
        raise DataError(f"{path.name} holds no row")
    ids, labels = (column.flatten().to_numpy().astype(np.int32, copy=False) for column in columns)
    starts, label_starts = (_starts(column) for column in columns)
    if not np.array_equal(starts, label_starts):
        raise DataError(f"{path.name} has rows with more or fewer labels than tokens")
    rows = TokenRows(ids, labels, starts)
    _check(rows, path.name, vocabulary)
    return rows


def _starts(column: Any) -> Any:
    import numpy as np

    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _check(rows: TokenRows, name: str, vocabulary: int) -> None:
    import numpy as np

    top = int(rows.input_ids.max(initial=0))
    if top >= vocabulary:
        raise DataError(
            f"{name} has the token id {top}, the model knows {vocabulary} tokens: "
            "the rows were made with another model's tokenizer"
        )
    starts, ends = rows.starts[:-1], rows.starts[1:]
    trains = rows.labels != IGNORED
    trains[starts[starts < ends]] = False  # a row's first token is predicted from nothing
    before = np.concatenate([[0], np.cumsum(trains)])
    empty = np.flatnonzero(before[ends] == before[starts])
    if len(empty):
        raise DataError(f"{name} has {len(empty)} rows without any label to train, the first of them is row {empty[0]}")


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch, padded on the right to its longest row: `input_ids`, `labels`, and `attention_mask` where rows differ.

    Without a mask, attention takes the faster causal kernel. Padding has the id 0; nothing sees it.
    """
    import torch

    lengths = [len(row["input_ids"]) for row in rows]
    shape = (len(rows), max(lengths))
    batch = {
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORED, dtype=torch.long),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
    }
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        batch["input_ids"][index, :length] = torch.tensor(row["input_ids"])
        batch["labels"][index, :length] = torch.tensor(row["labels"])
        batch["attention_mask"][index, :length] = 1
    if len(set(lengths)) == 1:
        del batch["attention_mask"]
    return batch


def split_by_length(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same rows as batches with hardly any padding, for devices that are as fast on one row as on many.

    Alpaca's rows, four at a time, are padding by almost a half.
    """
    if "attention_mask" not in batch:
        return [dict(batch)]
    lengths: list[int] = batch["attention_mask"].sum(dim=1).tolist()
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if groups and lengths[groups[-1][0]] - lengths[index] <= PADDING_WORTH_A_CALL:
            groups[-1].append(index)
        else:
            groups.append([index])
    return [_part(batch, group, lengths) for group in groups]


def _part(batch: Mapping[str, Any], group: list[int], lengths: list[int]) -> dict[str, Any]:
    longest = lengths[group[0]]
    part = {name: tensor[group, :longest] for name, tensor in batch.items()}
    if all(lengths[index] == longest for index in group):
        del part["attention_mask"]
    return part

"""Rows that have a class, as a trainer reads them: `read_class_rows(Path("tokens/train.arrow"), 49152, num_labels=3)`.

As in `rows.py`, the file is mapped into memory, and what is handed out are views of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.errors import DataError
from stages.training.batches import padded
from stages.training.rows import PartedRows, check_ids, open_batches, views

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["ClassRows", "collate_classes", "read_class_rows"]


class ClassPart(NamedTuple):
    """Rows of different lengths, laid end to end: a record batch of the file.

    Attributes:
        input_ids: token ids of all rows, int32.
        starts: where each row begins, and, last, where the last one ends.
        labels: the class of each row, int64.
    """

    input_ids: NDArray[np.int32]
    starts: NDArray[Any]
    labels: NDArray[np.int64]


class ClassRows(PartedRows[ClassPart]):
    """Rows by their number; what it hands out are views."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row `index`: `input_ids`, and `label`, a number."""
        part, at, row = self.find(index)
        return {"input_ids": part.input_ids[row], "label": int(part.labels[at])}

    @property
    def num_labels(self) -> int:
        """Tokens off which a class is read: one a row."""
        return len(self)


def read_class_rows(path: Path, vocabulary: int, num_labels: int) -> ClassRows:
    """Opens a file that the tokenize stage has written for a classifier.

    Args:
        path: an Arrow stream with the columns `input_ids`, lists of int32, and `label`, int64.
        vocabulary: tokens that the model knows.
        num_labels: classes that it is to know.

    Raises:
        DataError: no row, no such columns, a row without tokens, an id or a class that the model does not know.
    """
    parts: list[ClassPart] = []
    done = 0
    for batch in open_batches(path, "tokens"):
        part = _part(batch, path.name)
        check_ids(part.input_ids, path.name, vocabulary)
        _check_labels(part.labels, num_labels, path.name, done)
        if (part.starts[1:] == part.starts[:-1]).any():
            raise DataError(f"{path.name} has a row without a token: tokenize again")
        parts.append(part)
        done += len(part.labels)
    if not done:
        raise DataError(f"{path.name} holds no row")
    return ClassRows(parts)


def _part(batch: pa.RecordBatch, name: str) -> ClassPart:
    import pyarrow as pa

    if "labels" in batch.schema.names:
        raise DataError(f"{name} holds answers to learn, and no classes: tokenize with `--num_labels`")
    ids, starts = views(batch, "input_ids", "int32", name)
    if "label" not in batch.schema.names or batch.schema.field("label").type != pa.int64():
        raise DataError(f"{name} has the columns {', '.join(batch.schema.names)}; label, of int64, is needed")
    labels = batch.column("label")
    if labels.null_count:
        raise DataError(f"{name} has rows without label")
    return ClassPart(ids, starts, labels.to_numpy())


def _check_labels(labels: NDArray[np.int64], num_labels: int, name: str, before: int) -> None:
    import numpy as np

    wrong = np.flatnonzero((labels < 0) | (labels >= num_labels))
    if len(wrong):
        raise DataError(
            f"{name} row {before + int(wrong[0]) + 1}: its label is {labels[wrong[0]]}, and `--num_labels "
            f"{num_labels}` knows 0 to {num_labels - 1}: tokenize with the same `--num_labels`"
        )


def collate_classes(rows: Sequence[Mapping[str, Any]], padding: int) -> dict[str, Any]:
    """A batch, padded on the right to its longest row.

    It has `input_ids`, `labels` (the classes, one a row) and `attention_mask` where rows differ in length. A class is
    read off the last token that is not `padding`: it must be the id that the model takes for that.
    """
    import numpy as np
    import torch

    lengths = [len(row["input_ids"]) for row in rows]
    longest = max(lengths)
    ids = padded([row["input_ids"] for row in rows], longest, padding, np.int64)
    batch = {"input_ids": ids, "labels": torch.tensor([row["label"] for row in rows])}
    if len(set(lengths)) > 1:
        batch["attention_mask"] = padded([np.ones(length) for length in lengths], longest, 0, np.int64)
    if "place" in rows[-1]:
        batch["place"] = torch.tensor(rows[-1]["place"])
    return batch

"""Tokenized rows as a trainer reads them: `read_rows(Path("tokens/train.arrow"), vocabulary=49152)`.

The file is mapped into memory and what is handed out are views of it: memory does not grow with the number of rows.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from stages.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["IGNORED", "Part", "PartedRows", "TokenRows", "open_batches", "read_rows", "trains", "views"]

IGNORED = -100
"""The label of a token that is not trained."""
END = b"\xff\xff\xff\xff\0\0\0\0"
"""How an Arrow stream ends; a reader takes one that was cut off between two batches for whole."""


class Part(NamedTuple):
    """Rows of different lengths, laid end to end: a record batch of the file.

    Attributes:
        input_ids: token ids of all rows, int32.
        labels: the same, with IGNORED where nothing is trained.
        starts: where each row begins, and, last, where the last one ends.
        loss_scale: what each token's loss is multiplied by, float32; None where that is 1.
    """

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    starts: NDArray[Any]
    loss_scale: NDArray[np.float32] | None = None


class Parted(Protocol):
    """What the record batches of every kind of rows have; see `Part`."""

    @property
    def input_ids(self) -> NDArray[np.int32]:
        """Token ids of all rows."""

    @property
    def starts(self) -> NDArray[Any]:
        """Where each row begins, and, last, where the last one ends."""


P = TypeVar("P", bound=Parted)


class PartedRows(Generic[P]):
    """Rows that lie in parts, by their number."""

    def __init__(self, parts: Sequence[P]) -> None:
        self.parts = parts
        self._firsts = [0, *accumulate(len(part.starts) - 1 for part in parts)]

    def __len__(self) -> int:
        """Number of rows."""
        return self._firsts[-1]

    def find(self, index: int) -> tuple[P, int, slice]:
        """The part that a row is in, its number there, and its tokens.

        Raises:
            IndexError: there is no such row.
        """
        if not 0 <= index < self._firsts[-1]:
            raise IndexError(index)
        number = bisect_right(self._firsts, index) - 1
        part = self.parts[number]
        at = index - self._firsts[number]
        return part, at, slice(part.starts[at], part.starts[at + 1])

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [length for part in self.parts for length in (part.starts[1:] - part.starts[:-1]).tolist()]

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(part.input_ids) for part in self.parts)


class TokenRows(PartedRows[Part]):
    """Rows with answers to learn; what it hands out are views."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row `index`: `input_ids`, `labels` and, where there are weights, `loss_scale`, each of its length."""
        part, _, row = self.find(index)
        item: dict[str, Any] = {"input_ids": part.input_ids[row], "labels": part.labels[row]}
        if part.loss_scale is not None:
            item["loss_scale"] = part.loss_scale[row]
        return item

    @cached_property
    def num_labels(self) -> int:
        """Tokens that are trained."""
        return sum(int((part.labels != IGNORED).sum()) for part in self.parts)


def read_rows(path: Path, vocabulary: int) -> TokenRows:
    """Opens a file that the tokenize stage has written.

    Args:
        path: an Arrow stream with the columns `input_ids` and `labels`, lists of int32, and perhaps `loss_scale`.
        vocabulary: tokens that the model knows.

    Raises:
        DataError: no row, a column that is missing, a row without a label, or an id that the model does not know.
    """
    parts, untrained = [], 0
    first_untrained, num_rows = None, 0
    for batch in open_batches(path, "tokens"):
        part = _part(batch, path.name)
        parts.append(part)
        empty = _check(part, path.name, vocabulary)
        if len(empty) and first_untrained is None:
            first_untrained = num_rows + int(empty[0])
        untrained += len(empty)
        num_rows += len(part.starts) - 1
    if not num_rows:
        raise DataError(f"{path.name} holds no row")
    if untrained:
        raise DataError(
            f"{path.name} has {untrained} rows without any label to train, the first of them is row {first_untrained}"
        )
    return TokenRows(parts)


def open_batches(path: Path, what: str) -> Iterator[pa.RecordBatch]:
    """The record batches of an Arrow stream, mapped into memory; those without a row are left out.

    Raises:
        DataError: it is none, or it was cut off.
    """
    import pyarrow as pa

    try:
        with pa.ipc.open_stream(pa.memory_map(str(path))) as reader:
            yield from (batch for batch in reader if batch.num_rows)
        with path.open("rb") as file:
            file.seek(-len(END), os.SEEK_END)
            whole = file.read() == END
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path.name} is no Arrow stream of {what}: {str(error).splitlines()[0]}") from None
    if not whole:
        raise DataError(f"{path.name} was cut off")


def views(batch: pa.RecordBatch, column: str, kind: str, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """A column of lists as its values, laid end to end, and where each list begins and the last one ends.

    Raises:
        DataError: the column is missing, or not of this kind; `name` is the file's.
    """
    import pyarrow as pa

    if column not in batch.schema.names:
        raise DataError(f"{name} has the columns {', '.join(batch.schema.names)}; {column} is needed")
    lists = batch.column(column)
    if not pa.types.is_list(lists.type) or str(lists.type.value_type) != kind:
        raise DataError(f"{name} has {lists.type} in the column {column}; lists of {kind} are needed")
    if lists.null_count:
        raise DataError(f"{name} has rows without {column}")
    starts = lists.offsets.to_numpy()
    values = lists.values.slice(starts[0], starts[-1] - starts[0])
    if values.null_count:
        raise DataError(f"{name} has gaps in the column {column}")
    return values.to_numpy(), starts - starts[0] if starts[0] else starts


def _part(batch: pa.RecordBatch, name: str) -> Part:
    import numpy as np

    ids, starts = views(batch, "input_ids", "int32", name)
    labels, label_starts = views(batch, "labels", "int32", name)
    if not np.array_equal(starts, label_starts):
        raise DataError(f"{name} has rows with more or fewer labels than tokens")
    if "loss_scale" not in batch.schema.names:
        return Part(ids, labels, starts)
    scale, scale_starts = views(batch, "loss_scale", "float", name)
    if not np.array_equal(starts, scale_starts):
        raise DataError(f"{name} has rows with more or fewer weights than tokens")
    return Part(ids, labels, starts, scale)


def _check(part: Part, name: str, vocabulary: int) -> NDArray[Any]:
    """The rows without a label."""
    import numpy as np

    check_ids(part.input_ids, name, vocabulary)
    starts, ends = part.starts[:-1], part.starts[1:]
    trained = part.labels != IGNORED
    trained[starts[starts < ends]] = False  # a row's first token is predicted from nothing
    before = np.concatenate([[0], np.cumsum(trained, dtype=np.int32)])
    empty: NDArray[Any] = np.flatnonzero(before[ends] == before[starts])
    return empty


def check_ids(ids: NDArray[np.int32], name: str, vocabulary: int) -> None:
    """Refuses ids that the model has no embedding for.

    Raises:
        DataError: there is one; `name` says where.
    """
    low, top = int(ids.min(initial=0)), int(ids.max(initial=0))
    if low < 0 or top >= vocabulary:
        raise DataError(
            f"{name} has the token id {low if low < 0 else top}, the model knows {vocabulary} tokens: "
            "the rows were made with another model's tokenizer"
        )


def trains(row: Mapping[str, Any]) -> bool:
    """Whether anything in a row is trained: its first token is predicted from nothing."""
    return bool((row["labels"][1:] != IGNORED).any())

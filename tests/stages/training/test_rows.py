"""Rows as the trainer reads them, and batches without padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.errors import DataError
from stages.training.rows import IGNORED, collate, read_rows, split_by_length

X = IGNORED
GOOD = ([[1, 2, 3], [4, 5], [6, 7, 8, 9]], [[X, 2, 3], [X, 5], [X, X, X, 9]])


def write(path: Path, ids: list[list[int]], labels: list[list[int]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.list_(pa.int32())
    table = pa.table({"input_ids": pa.array(ids, kind), "labels": pa.array(labels, kind)})
    pq.write_table(table, path, row_group_size=2)  # several chunks
    return path


def test_read(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "train.parquet", *GOOD), vocabulary=10)
    assert len(rows) == 3
    assert [row["input_ids"].tolist() for row in rows] == GOOD[0]
    assert [rows[index]["labels"].tolist() for index in range(3)] == GOOD[1]
    assert rows.lengths == [3, 2, 4]
    assert (rows.num_tokens, rows.num_labels) == (9, 4)


@pytest.mark.parametrize(
    ("ids", "labels", "message"),
    [
        ([], [], "train.parquet holds no row"),
        ([[1, 2]], [[X, 2, 3]], "rows with more or fewer labels than tokens"),
        ([[1, 10]], [[X, 1]], "token id 10, the model knows 10 tokens: the rows were made with another model's token"),
        ([[1, 2], [1, 2], []], [[X, 2], [X, X], []], "has 2 rows without any label to train, the first of them is r"),
        ([[1, 2], [1, 2]], [[X, 2], [1, X]], "has 1 rows without any label to train, the first of them is row 1"),
    ],
)
def test_refused(tmp_path: Path, ids: list[list[int]], labels: list[list[int]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_rows(write(tmp_path / "train.parquet", ids, labels), vocabulary=10)


def test_not_parquet(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_text("input_ids\n")
    with pytest.raises(DataError, match=r"train.parquet is no Parquet file of tokens"):
        read_rows(tmp_path / "train.parquet", vocabulary=10)


def batch_of(*lengths: int) -> dict[str, Any]:
    import numpy as np

    rows = [np.full(length, length, np.int32) for length in lengths]
    return collate([{"input_ids": row, "labels": row} for row in rows])


def test_collate_pads_to_the_longest_row() -> None:
    batch = batch_of(3, 1)
    assert batch["input_ids"].tolist() == [[3, 3, 3], [1, 0, 0]]
    assert batch["labels"].tolist() == [[3, 3, 3], [1, X, X]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert "attention_mask" not in batch_of(4, 4)


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ((30, 30, 30), [[30, 30, 30]]),
        ((10, 200, 100), [[200], [100], [10]]),
        ((90, 210, 200, 100), [[210, 200], [100, 90]]),
        ((7,), [[7]]),
    ],
)
def test_split_by_length(lengths: tuple[int, ...], groups: list[list[int]]) -> None:
    """Every row is there once, whole; rows of about one length stay together."""
    parts = split_by_length(batch_of(*lengths))
    found = [[int((row != X).sum()) for row in part["labels"]] for part in parts]
    assert found == groups
    for part, group in zip(parts, groups, strict=True):
        assert part["input_ids"].shape == (len(group), max(group))
        assert ("attention_mask" in part) == (len(set(group)) > 1)

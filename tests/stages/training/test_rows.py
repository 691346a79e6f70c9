"""Rows as the trainer reads them: views of a mapped file, checked batch by batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.errors import DataError
from stages.training.rows import IGNORED, read_rows
from tests.stages.training.tokens import write_arrow

X = IGNORED
GOOD = ([[1, 2, 3], [4, 5], [6, 7, 8, 9], [1, 2], [3, 4, 5]], [[X, 2, 3], [X, 5], [X, X, X, 9], [X, 2], [X, 4, X]])


def write(path: Path, ids: list[list[int]], labels: list[list[int]]) -> Path:
    return write_arrow(path, {"input_ids": ids, "labels": labels})


def test_read(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "train.arrow", *GOOD), vocabulary=10)
    assert len(rows) == 5
    assert len(rows.parts) == 3
    assert [row["input_ids"].tolist() for row in rows] == GOOD[0]
    assert [rows[index]["labels"].tolist() for index in range(5)] == GOOD[1]
    assert rows[0].keys() == {"input_ids", "labels"}
    assert rows.lengths == [3, 2, 4, 2, 3]
    assert (rows.num_tokens, rows.num_labels) == (14, 6)


def test_weights(tmp_path: Path) -> None:
    scale = [[0.0, 1.0, 3.0], [0.0, 0.5]]
    path = write_arrow(tmp_path / "train.arrow", {"input_ids": GOOD[0][:2], "labels": GOOD[1][:2], "loss_scale": scale})
    rows = read_rows(path, vocabulary=10)
    assert [row["loss_scale"].tolist() for row in rows] == scale


def test_rows_are_views_of_the_file(tmp_path: Path) -> None:
    row = read_rows(write(tmp_path / "train.arrow", *GOOD), vocabulary=10)[4]
    for values in row.values():
        assert not values.flags.owndata
        assert not values.flags.writeable


def test_a_slice_that_does_not_begin_at_the_first_value(tmp_path: Path) -> None:
    import pyarrow as pa

    kind = pa.list_(pa.int32())
    table = pa.table({"input_ids": pa.array(GOOD[0], kind), "labels": pa.array(GOOD[1], kind)}).slice(1, 3)
    with pa.ipc.new_stream(str(tmp_path / "train.arrow"), table.schema) as file:
        file.write_table(table)
    rows = read_rows(tmp_path / "train.arrow", vocabulary=10)
    assert [row["input_ids"].tolist() for row in rows] == GOOD[0][1:4]


def anonymous_bytes() -> int:
    """Memory of this process that is not a mapped file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """64 MB of rows, all of which are read."""
    import numpy as np
    import pyarrow as pa

    flat = pa.array(np.ones(256 * 1000, dtype=np.int32))
    column = pa.ListArray.from_arrays(pa.array(np.arange(0, 256_001, 1000, dtype=np.int32)), flat)
    batch = pa.record_batch({"input_ids": column, "labels": column})
    with pa.ipc.new_stream(str(tmp_path / "small.arrow"), batch.schema) as file:
        file.write_batch(batch)
    with pa.ipc.new_stream(str(tmp_path / "large.arrow"), batch.schema) as file:
        for _ in range(32):
            file.write_batch(batch)
    read_rows(tmp_path / "small.arrow", vocabulary=10)
    before = anonymous_bytes()
    rows = read_rows(tmp_path / "large.arrow", vocabulary=10)
    assert sum(len(row["input_ids"]) for row in rows) == 32 * 256_000
    assert (tmp_path / "large.arrow").stat().st_size > 64_000_000
    assert anonymous_bytes() - before < 8_000_000


@pytest.mark.parametrize(
    ("ids", "labels", "message"),
    [
        ([], [], "train.arrow holds no row"),
        ([[1, 2]], [[X, 2, 3]], "rows with more or fewer labels than tokens"),
        ([[1, 10]], [[X, 1]], "token id 10, the model knows 10 tokens: the rows were made with another model's token"),
        ([[1, -5]], [[X, 1]], "token id -5, the model knows 10 tokens"),
        ([[1, 2], [1, 2], []], [[X, 2], [X, X], []], "has 2 rows without any label to train, the first of them is r"),
        ([[1, 2], [1, 2], [1, 2]], [[X, 2], [X, 2], [1, X]], "has 1 rows without any label .* first of them is row 2"),
    ],
)
def test_refused(tmp_path: Path, ids: list[list[int]], labels: list[list[int]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_rows(write(tmp_path / "train.arrow", ids, labels), vocabulary=10)


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "train.arrow"
    path.write_text("input_ids\n")
    with pytest.raises(DataError, match=r"train.arrow is no Arrow stream of tokens"):
        read_rows(path, vocabulary=10)
    with pytest.raises(DataError, match=r"train.arrow has the columns input_ids; labels is needed"):
        read_rows(write_arrow(path, {"input_ids": [[1]]}), vocabulary=10)
    with pytest.raises(DataError, match=r"train.arrow has list<item: float> in the column labels; lists of int32"):
        read_rows(write_wrong(path), vocabulary=10)
    whole = write(path, *GOOD).read_bytes()
    for length in (len(whole) - 8, len(whole) - 20, len(whole) // 2, 300, 100):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"train.arrow (was cut off|is no Arrow stream of tokens)"):
            read_rows(path, vocabulary=10)


def write_wrong(path: Path) -> Path:
    import pyarrow as pa

    ids, labels = pa.array([[1]], pa.list_(pa.int32())), pa.array([[1.0]], pa.list_(pa.float32()))
    table = pa.table({"input_ids": ids, "labels": labels})
    with pa.ipc.new_stream(str(path), table.schema) as file:
        file.write_table(table)
    return path

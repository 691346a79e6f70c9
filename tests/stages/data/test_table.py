from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from stages.data.table import ROWS_A_BATCH, RowWriter, StoredRows, write_parquet


def store(path: Path, count: int, **columns: object) -> StoredRows:
    with RowWriter(path) as writer:
        for number in range(count):
            messages = [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": "a"}]
            writer.write({"messages": messages, **columns})
    assert writer.num_rows == count
    return StoredRows(path)


def questions(path: Path) -> list[str]:
    return [row[0]["content"] for row in pq.read_table(path)["messages"].to_pylist()]


def test_rows_are_gathered_in_any_order_over_all_batches(tmp_path: Path) -> None:
    count = 2 * ROWS_A_BATCH + 5
    rows = store(tmp_path / "rows.arrow", count)
    indices = np.random.default_rng(0).integers(0, count, size=count + 100)
    assert write_parquet([(rows, indices)], tmp_path / "out.parquet") == len(indices)
    assert questions(tmp_path / "out.parquet") == [f"q{index}" for index in indices]


def test_datasets_follow_each_other_and_only_used_columns_are_written(tmp_path: Path) -> None:
    one, other = store(tmp_path / "0.arrow", 3), store(tmp_path / "1.arrow", 2, rejected_response="no")
    path = tmp_path / "out.parquet"
    assert write_parquet([(one, np.array([2, 0])), (other, np.array([1]))], path) == 3
    assert questions(path) == ["q2", "q0", "q1"]
    assert pq.read_schema(path).names == ["messages", "rejected_response"]
    assert pq.read_table(path)["rejected_response"].to_pylist() == [None, None, "no"]


def test_no_rows_make_no_file(tmp_path: Path) -> None:
    assert write_parquet([(store(tmp_path / "0.arrow", 3), np.arange(0))], tmp_path / "out.parquet") == 0
    assert not (tmp_path / "out.parquet").exists()

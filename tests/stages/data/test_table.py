from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.data import table
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


def test_long_rows_are_written_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By bytes as well as by number: a batch of Arrow's takes no more than 2 GB of text, and memory is bounded."""
    monkeypatch.setattr(table, "GROUP_BYTES", 10_000)
    monkeypatch.setattr(table, "GATHERED_BYTES", 20_000)
    lengths = [3, 12_000, 5, 8_000, 8_000, *[4] * 30, 50_000, 1]
    with RowWriter(tmp_path / "0.arrow") as writer:
        for number, length in enumerate(lengths):
            writer.write({"messages": [{"role": "assistant", "content": f"{number} {'x' * length}"}]})
    rows = StoredRows(tmp_path / "0.arrow")
    indices = np.random.default_rng(0).permutation(np.tile(np.arange(len(lengths)), 3))
    path = tmp_path / "out.parquet"
    write_parquet([(rows, indices)], path)
    assert [int(text.split()[0]) for text in questions(path)] == indices.tolist()
    file = pq.ParquetFile(path)
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    assert 10 < len(sizes) < len(indices)
    with pa.ipc.open_file(tmp_path / "0.arrow") as stored:
        counts = [stored.get_batch(index).num_rows for index in range(stored.num_record_batches)]
    assert counts == [2, 3, 31, 1]


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


def test_calls_and_loss_are_fields_only_where_a_message_has_them(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": '[{"name":"f","arguments":{}}]'}
    quiet = {"role": "assistant", "content": "a", "loss": False}
    with RowWriter(tmp_path / "0.arrow") as writer:
        for answer in ({"role": "assistant", "content": "a"}, call, quiet):
            writer.write({"messages": [{"role": "user", "content": "q"}, answer]})
    rows = StoredRows(tmp_path / "0.arrow")
    assert rows.columns == {"messages", "messages.tool_calls", "messages.loss"}
    write_parquet([(rows, np.array([2, 1]))], tmp_path / "both.parquet")
    fields = [field.name for field in pq.read_schema(tmp_path / "both.parquet").field("messages").type.value_type]
    assert fields == ["role", "content", "tool_calls", "loss"]
    answers = [row[1] for row in pq.read_table(tmp_path / "both.parquet")["messages"].to_pylist()]
    assert answers == [quiet | {"tool_calls": None}, call | {"loss": None}]
    plain = store(tmp_path / "1.arrow", 2)
    write_parquet([(plain, np.array([0]))], tmp_path / "plain.parquet")
    fields = [field.name for field in pq.read_schema(tmp_path / "plain.parquet").field("messages").type.value_type]
    assert fields == ["role", "content"]


def test_only_media_of_rows_that_are_written_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"{number}.bin")
        paths[-1].write_bytes(bytes([number]))
    with RowWriter(tmp_path / "0.arrow") as writer:
        for path in paths:
            writer.write({"messages": [{"role": "assistant", "content": "a"}], "videos": [str(path)]})
    write_parquet([(StoredRows(tmp_path / "0.arrow"), np.array([2, 0, 2]))], out / "train.parquet")
    named = [row[0] for row in pq.read_table(out / "train.parquet")["videos"].to_pylist()]
    assert [(out / name).read_bytes() for name in named] == [b"\2", b"\0", b"\2"]
    assert len(list((out / "media").iterdir())) == 2

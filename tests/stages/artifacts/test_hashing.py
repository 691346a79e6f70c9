"""Files are hashed alike, whichever way they are read; work in threads keeps its order and its errors."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from stages.artifacts.hashing import BUFFER_BYTES, copy_and_hash, hash_file, hash_own_file, on_all_cores
from stages.errors import UserError


@pytest.mark.parametrize("size", [0, 1, BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 1, 3 * BUFFER_BYTES])
def test_every_way_of_reading_gives_the_same(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    path = tmp_path / "data"
    path.write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()
    assert hash_file(path) == hash_own_file(path) == copy_and_hash(path, tmp_path / "copy") == expected
    assert (tmp_path / "copy").read_bytes() == data


def test_a_file_with_holes(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(4 * BUFFER_BYTES)
    assert hash_own_file(path) == hashlib.sha256(b"\0" * (4 * BUFFER_BYTES)).hexdigest()


def test_a_copy_never_overwrites(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    with pytest.raises(FileExistsError):
        copy_and_hash(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "b"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*gone: No such file or directory"):
        hash_file(tmp_path / "gone")


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_results_stand_in_the_order_of_the_items(count: int) -> None:
    assert on_all_cores(lambda number: number * 2, range(count)) == [number * 2 for number in range(count)]


def test_an_error_is_raised_once_all_threads_have_ended() -> None:
    running: list[int] = []

    def work(number: int) -> None:
        running.append(number)
        if number == 0:
            raise UserError("the first")
        threading.Event().wait(0.05)
        running.append(-number)

    with pytest.raises(UserError, match="the first"):
        on_all_cores(work, range(100))
    assert sum(running) == 0
    assert len(running) < 100

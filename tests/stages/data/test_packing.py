"""Every row is in one pack, no pack is too long, and hardly any room is left."""

from __future__ import annotations

import random
import time

import pytest

from stages.data.packing import fill_rate, pack


@pytest.mark.parametrize(
    ("lengths", "max_length", "packs"),
    [
        ([], 8, []),
        ([8], 8, [[0]]),
        ([3, 5], 8, [[1, 0]]),
        ([5, 5, 5], 8, [[0], [1], [2]]),
        ([4, 4, 4, 4], 8, [[0, 1], [2, 3]]),
        ([2, 6, 5, 3], 8, [[1, 0], [2, 3]]),
        ([6, 5, 3, 2], 8, [[0, 3], [1, 2]]),
        ([7, 4, 3, 1, 1], 9, [[0], [1, 2, 3, 4]]),  # the fullest pack that takes it, not the first
        ([0, 8], 8, [[1], [0]]),
    ],
)
def test_pack(lengths: list[int], max_length: int, packs: list[list[int]]) -> None:
    assert pack(lengths, max_length) == packs


def test_too_long() -> None:
    with pytest.raises(ValueError, match="row 1 has 9 tokens, a pack takes 8"):
        pack([3, 9], 8)


@pytest.mark.parametrize("max_length", [64, 512, 4096])
def test_every_row_once_and_full(max_length: int) -> None:
    generator = random.Random(max_length)
    lengths = [min(max_length, 1 + int(generator.lognormvariate(4, 1))) for _ in range(5000)]
    packs = pack(lengths, max_length)
    assert sorted(row for rows in packs for row in rows) == list(range(5000))
    assert max(sum(lengths[row] for row in rows) for rows in packs) <= max_length
    assert fill_rate(lengths, packs, max_length) > 0.99
    assert fill_rate(lengths, packs, max_length) == sum(lengths) / max_length / len(packs)
    assert packs == pack(lengths, max_length)


def test_as_good_as_best_fit_by_hand() -> None:
    """The same packs as the textbook's O(n²) algorithm, in number."""
    generator = random.Random(1)
    lengths = [generator.randint(1, 100) for _ in range(400)]
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else 100) - length)
    assert len(pack(lengths, 100)) == len(rooms)


def test_speed() -> None:
    """A quarter of a million rows in a second or two; an algorithm that is quadratic takes hours."""
    generator = random.Random(2)
    lengths = [min(2048, 1 + int(generator.lognormvariate(5, 0.8))) for _ in range(250_000)]
    began = time.monotonic()
    pack(lengths, 2048)
    assert time.monotonic() - began < 20

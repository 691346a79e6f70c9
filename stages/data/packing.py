"""Which rows go together into one sequence: `pack([300, 200, 12], max_length=512)` is `[[0, 1, 2]]`."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

__all__ = ["fill_rate", "pack"]


def pack(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Best-fit decreasing: each row, the longest first, goes into the fullest pack that still takes it.

    The same lengths always give the same packs. n rows take O(n (log n + log max_length)).

    Args:
        lengths: tokens of each row, none of them more than `max_length`.
        max_length: tokens of a pack at most.

    Returns:
        Row numbers of each pack; every row is in one of them.

    Raises:
        ValueError: a row is longer than a pack.
    """
    packs: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # tokens that still fit -> packs
    rooms: list[int] = []  # the keys of with_room, ascending
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        length = lengths[row]
        at = bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            number = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[at]
            packs[number].append(row)
        elif length > max_length:
            raise ValueError(f"row {row} has {length} tokens, a pack takes {max_length}")
        else:
            number, room = len(packs), max_length
            packs.append([row])
        if left := room - length:
            if left not in with_room:
                insort(rooms, left)
                with_room[left] = []
            with_room[left].append(number)
    return packs


def fill_rate(lengths: Sequence[int], packs: Sequence[Sequence[int]], max_length: int) -> float:
    """The share of the packs' room that rows take."""
    return sum(lengths) / (len(packs) * max_length) if packs else 0.0

"""Rows that are read and tokenized as they are needed, without end: `for row in make_stream(rows, usable, None): …`.

Every row carries its `place`; a stream that starts at a place goes on with the row after it, and encodes none before.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from stages.data.packing import pack
from stages.errors import DataError
from stages.training.batches import OF_TEXT, join
from stages.training.feed import Place

if TYPE_CHECKING:
    from stages.training.usable import Usable

__all__ = ["WINDOW", "RawRows", "StreamedRows", "make_stream"]

WINDOW = 1024
"""So many rows are packed together: of alpaca's, 99 % of a pack of 1024 tokens is then filled, 98 % with 256."""


class RawRows(Protocol):
    """What `stages.data.stream.RowStream` is."""

    def rows(self, start: int = 0, epoch: int = 0) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The rows of one pass from a position on, each with the position after it."""


def make_stream(raw: RawRows, usable: Usable, pack_length: int | None) -> StreamedRows:
    """A dataset as torch's DataLoader takes it.

    Args:
        raw: standard rows in their order.
        usable: encodes them.
        pack_length: tokens of a pack; None for rows as they are.
    """
    from torch.utils.data import IterableDataset

    class Stream(StreamedRows, IterableDataset):  # type: ignore[type-arg]
        pass

    return Stream(raw, usable, pack_length)


class StreamedRows:
    """One pass over the data after the other.

    Attributes:
        start: where it begins.
    """

    def __init__(self, raw: RawRows, usable: Usable, pack_length: int | None) -> None:
        self.raw, self.usable, self.pack_length = raw, usable, pack_length
        self.start = Place()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Rows, or packs of rows, each with the place after it.

        Raises:
            DataError: there was none in a whole pass.
        """
        place = self.start
        while True:
            empty = place == Place(epoch=place.epoch)
            for item in self._rows(place) if self.pack_length is None else self._packs(place, self.pack_length):
                empty = False
                yield item
            if empty:
                raise DataError("no row of the stream can be trained")
            place = Place(epoch=place.epoch + 1)

    def _rows(self, place: Place) -> Iterator[dict[str, Any]]:
        for position, row in self.raw.rows(place.position, place.epoch):
            item = self.usable(row, position)
            if item is not None:
                yield item | {"place": Place(position, place.epoch)}

    def _packs(self, place: Place, length: int) -> Iterator[dict[str, Any]]:
        """Packs made of WINDOW rows at a time. Only the rows of one window are encoded again after a resume."""
        rows = self.raw.rows(place.position, place.epoch)
        start, done = place.position, place.packs
        while window := self._window(rows):
            items, end = window
            packs = pack([len(item["input_ids"]) for item in items], length)
            random.Random(start << 16 | place.epoch & 0xFFFF).shuffle(packs)  # they come with the longest rows first
            for number in range(done, len(packs)):
                last = number + 1 == len(packs)
                after = Place(end, place.epoch) if last else Place(start, place.epoch, number + 1)
                yield join([items[row] for row in packs[number]]) | {"place": after}
            start, done = end, 0

    def _window(self, rows: Iterator[tuple[int, Mapping[str, Any]]]) -> tuple[list[dict[str, Any]], int] | None:
        """The next rows, and the position after them."""
        items: list[dict[str, Any]] = []
        for end, row in rows:
            item = self.usable(row, end)
            if item is not None and not OF_TEXT.issuperset(item):
                raise DataError("`--packing` puts rows of text together, and the stream has rows with media: drop it")
            if item is not None:
                items.append(item)
            if len(items) == WINDOW:
                break
        return (items, end) if items else None

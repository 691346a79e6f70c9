"""A stream goes on from any place exactly, and encodes no row that lies before it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from stages.data.encode import EncoderSettings, open_encoder
from stages.data.stream import RowStream
from stages.errors import DataError
from stages.training import stream
from stages.training.feed import Place
from stages.training.stream import make_stream
from stages.training.usable import Usable
from tests.stages.training.later import LONG, questions, write_stream

LOGGER = logging.getLogger("test")
COUNT = 30


class Counting(Usable):
    """Remembers how many rows it has encoded."""

    encoded = 0

    def __call__(self, row: Mapping[str, Any], number: int) -> dict[str, Any] | None:
        self.encoded += 1
        return super().__call__(row, number)


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Any:
    return open_encoder(tiny_model, EncoderSettings(max_length=128, truncation="delete"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = questions(COUNT)
    rows[4] = rows[11] = ("what?", LONG)
    return write_stream(tmp_path / "tokens", rows)


def items(folder: Path, encoder: Any, start: Place, pack_length: int | None, count: int) -> tuple[list[Any], int]:
    usable = Counting(encoder, 384, "stream", LOGGER)
    rows = make_stream(RowStream.open(folder), usable, pack_length)
    rows.start = start
    found = [
        {name: getattr(value, "tolist", lambda value=value: value)() for name, value in item.items()}
        for item in islice(rows, count)
    ]
    return found, usable.encoded


def test_rows(folder: Path, encoder: Any) -> None:
    found, _ = items(folder, encoder, Place(), None, 60)
    first, second = found[: COUNT - 2], found[COUNT - 2 : 2 * (COUNT - 2)]
    texts = [[tuple(item["input_ids"]) for item in some] for some in (first, second)]
    assert sorted(texts[0]) == sorted(texts[1])
    assert len(set(texts[0])) == COUNT - 2
    assert texts[0] != texts[1]
    assert [item["place"].epoch for item in found] == [0] * 28 + [1] * 28 + [2] * 4
    positions = [item["place"].position for item in first]
    assert positions == sorted(positions)
    assert len(set(range(1, COUNT + 1)) - set(positions)) == 2
    assert first[0].keys() == {"input_ids", "labels", "place"}


@pytest.mark.parametrize("pack_length", [None, 128])
@pytest.mark.parametrize("window", [8, 1024])
def test_goes_on_from_every_place(
    folder: Path, encoder: Any, pack_length: int | None, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "WINDOW", window)
    count = 60 if pack_length is None else 20
    whole, encoded = items(folder, encoder, Place(), pack_length, count)
    for index in range(0, count - 1, 3 if pack_length is None else 1):
        place = Place(*whole[index]["place"])
        rest, again = items(folder, encoder, place, pack_length, count - 1 - index)
        assert rest == whole[index + 1 :]
        assert again <= encoded - (index if pack_length is None else 0)
    if pack_length is None:
        assert items(folder, encoder, Place(*whole[49]["place"]), None, 3)[1] <= 3 + 2


def test_packs(folder: Path, encoder: Any) -> None:
    """All rows of a pass, once each, put together; each with positions of its own."""
    rows, _ = items(folder, encoder, Place(), None, COUNT - 2)
    packs, _ = items(folder, encoder, Place(), 128, 20)
    first = [pack for pack in packs if pack["place"].epoch == 0]
    cut = []
    for pack in first:
        assert len(pack["input_ids"]) <= 128
        starts = [at for at, position in enumerate(pack["position_ids"]) if position == 0]
        cut += [pack["input_ids"][a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    assert sorted(cut) == sorted(row["input_ids"] for row in rows)
    room = sum(len(pack["input_ids"]) for pack in first) / (128 * len(first))
    assert room > 0.8  # few rows


def test_no_row_can_be_trained(tmp_path: Path, encoder: Any) -> None:
    folder = write_stream(tmp_path / "tokens", [("what?", LONG)] * 4)
    for pack_length in (None, 128):
        with pytest.raises(DataError, match="no row of the stream can be trained"):
            items(folder, encoder, Place(), pack_length, 1)


def test_pictures_cannot_be_packed(folder: Path, encoder: Any) -> None:
    class Pictures(Usable):
        def __call__(self, row: Mapping[str, Any], number: int) -> dict[str, Any] | None:
            item = super().__call__(row, number)
            return item and item | {"pixel_values": item["input_ids"]}

    rows = make_stream(RowStream.open(folder), Pictures(encoder, 384, "stream", LOGGER), 128)
    with pytest.raises(DataError, match="`--packing` puts rows of text together, and the stream has rows with media"):
        next(iter(rows))


def test_memory_does_not_grow() -> None:
    """A million rows pass; what is held is a window of them."""
    import tracemalloc

    import numpy as np

    class Endless:
        def rows(self, start: int = 0, epoch: int = 0) -> Iterator[tuple[int, Mapping[str, Any]]]:
            yield from ((number, {}) for number in range(start + 1, 200_001))

    ids = np.arange(20, dtype=np.int32)

    class Ready(Usable):
        def __call__(self, row: Mapping[str, Any], number: int) -> dict[str, Any] | None:
            return {"input_ids": ids, "labels": ids}

    packs = iter(make_stream(Endless(), Ready(None, 384, "stream", LOGGER), 128))  # type: ignore[arg-type]
    for _ in range(500):
        next(packs)
    tracemalloc.start()
    for _ in range(5000):
        next(packs)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000

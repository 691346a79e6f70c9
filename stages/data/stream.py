"""Rows of an artifact that `preprocess --streaming true` made, read when they are needed, in constant memory.

`for position, row in RowStream.open(inputs["tokens"]).rows(start=0, epoch=0): …`, and `rows(start=position)` goes on
exactly behind that row.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.data.media import MediaFinder
from stages.data.readers import ROWS_A_BATCH, Batch, Row, read_batches
from stages.data.self_cognition import SelfCognition
from stages.data.sources import explained
from stages.data.spec import Reading
from stages.errors import DataError

if TYPE_CHECKING:
    from stages.data.row_maker import RowMaker

__all__ = ["PLUGINS", "STREAM_FILE", "RowStream", "StreamFormat", "StreamPart", "StreamSource"]

STREAM_FILE = "stream.json"
PLUGINS = "files/plugins"
WINDOW = 1000
NAMED_DROPS = 10

Raw = tuple[str, int, Row, Reading]


@dataclass(frozen=True)
class StreamPart:
    """A file, or a hub's subset.

    Attributes:
        label: what to call it in a message.
        file: its path in the artifact; empty for a hub's.
        rows: how many the file has; None of a hub, where it is not known before they are read.
        hub: `hf`, read at `commit` as `name`, `subset` and `split`.
        columns: names of columns, as they were registered.
        messages: names of keys and roles, as they were registered.
        plugin: the number of the plugins' dataset whose function reads the rows.
    """

    label: str
    file: str = ""
    rows: int | None = None
    hub: str = ""
    name: str = ""
    commit: str = ""
    subset: str | None = None
    split: str = "train"
    columns: Mapping[str, str] = field(default_factory=dict)
    messages: Mapping[str, str] = field(default_factory=dict)
    plugin: int | None = None


@dataclass(frozen=True)
class StreamSource:
    """One dataset.

    Attributes:
        parts: follow each other.
        skip: rows at the start that are held out for validation.
        take: rows to read altogether, those to skip among them; all if None.
    """

    parts: Sequence[StreamPart]
    skip: int = 0
    take: int | None = None


@dataclass(frozen=True)
class StreamFormat:
    """What `stream.json` says.

    Attributes:
        sources: follow each other.
        seed: of the order and of draws between several answers.
        strict: a malformed row is an error instead of being passed over.
        model_name: of self-cognition rows.
        model_author: of self-cognition rows.
        version: of the stage preprocess: rows are read by its code, in stages whose keys do not know of it.
    """

    sources: Sequence[StreamSource]
    seed: int = 42
    strict: bool = False
    model_name: Sequence[str] = ()
    model_author: Sequence[str] = ()
    version: int = 0

    def write(self, folder: Path) -> None:
        """Writes the file."""
        text = json.dumps(self, default=_plain, ensure_ascii=False, indent=1, sort_keys=True)
        (folder / STREAM_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> StreamFormat:
        """Reads the file.

        Raises:
            DataError: it is not there or of another shape.
        """
        try:
            told = json.loads((folder / STREAM_FILE).read_text(encoding="utf-8"))
            sources = [
                StreamSource(**{**source, "parts": [StreamPart(**part) for part in source["parts"]]})
                for source in told["sources"]
            ]
            return cls(**{**told, "sources": sources})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder.name} holds no {STREAM_FILE} that can be read: {error!s:.200}") from error


def _plain(value: Any) -> dict[str, Any]:
    return {name: one for name, one in vars(value).items() if one not in (None, "", (), [], {})}


class RowStream:
    """Rows in their order, shuffled inside windows of a thousand.

    Attributes:
        num_dropped: rows that could not be used so far.
    """

    def __init__(self, folder: Path, told: StreamFormat, logger: logging.Logger, scratch: Path | None) -> None:
        self.folder = folder
        self.told = told
        self.num_dropped = 0
        self._logger = logger
        self._functions: list[Any] = []
        self._names = SelfCognition(told.model_name, told.model_author)
        self._media = MediaFinder(scratch or Path(tempfile.gettempdir()) / "martlet-media")

    @classmethod
    def open(cls, folder: Path, *, logger: logging.Logger | None = None, scratch: Path | None = None) -> RowStream:
        """Opens an artifact; nothing of the rows is read yet.

        Args:
            folder: with `stream.json`.
            logger: told the first rows that are dropped.
            scratch: for media that rows hold themselves.

        Raises:
            DataError: it is not the artifact of a stream.
            ArgumentsError: a plugin in it raises.
        """
        stream = cls(folder, StreamFormat.read(folder), logger or logging.getLogger("martlet"), scratch)
        if (folder / PLUGINS).is_dir():
            from stages.data.plugins import load_plugins

            stream._functions = [dataset.preprocess_func for dataset in load_plugins(folder / PLUGINS)]
        return stream

    def rows(self, start: int = 0, epoch: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """The standard rows of one pass, each with the position behind it.

        Args:
            start: a position that was given with a row of the same pass; 0 for all.
            epoch: the pass, which decides the order.

        Raises:
            DataError: a malformed row with `strict`, a file without any row that can be used.
            StageFailed: a hub cannot be reached.
        """
        from numpy.random import RandomState

        from stages.data.rows import RowError

        first = start // WINDOW
        used, reason = start > 0, ""
        for window, raw in enumerate(self._windows(first), start=first):
            order = RandomState([self.told.seed, epoch, window]).permutation(len(raw))
            maker = self._maker(epoch, window)
            for position, choice in enumerate(order.tolist(), start=window * WINDOW + 1):
                label, number, row, reading = raw[choice]
                try:
                    standard = maker.make(row, reading)  # also before `start`, for the draws that it makes
                except RowError as error:
                    if position > start:
                        reason = reason or f"{label} row {number}: {error}"
                        self._drop(f"{label} row {number}: {error}")
                    continue
                if position > start and standard is not None:
                    used = True
                    yield position, standard
        if not used:
            raise DataError(f"no row can be used. {reason}")

    def _maker(self, epoch: int, window: int) -> RowMaker:
        from stages.data.row_maker import RowMaker

        seed = hashlib.sha256(f"{self.told.seed}/{epoch}/{window}".encode()).digest()
        return RowMaker(int.from_bytes(seed[:4]), names=self._names, media=self._media)

    def _drop(self, reason: str) -> None:
        if self.told.strict:
            raise DataError(reason)
        self.num_dropped += 1
        if self.num_dropped <= NAMED_DROPS:
            self._logger.warning("dropped %s", reason)

    def _windows(self, first: int) -> Iterator[list[Raw]]:
        window: list[Raw] = []
        for raw in self._raw(first * WINDOW):
            window.append(raw)
            if len(window) == WINDOW:
                yield window
                window = []
        if window:
            yield window

    def _raw(self, start: int) -> Iterator[Raw]:
        """Rows as they were read, from the one of that number on."""
        left = start
        for source in self.told.sources:
            left = yield from self._source(source, left)

    def _source(self, source: StreamSource, left: int) -> Generator[Raw, None, int]:
        """Passes over the rows held out and over `left` more; gives how many of these are still left after it."""
        begin, at = source.skip + left, 0
        for part in source.parts:
            end = None if source.take is None else source.take - at
            if end is not None and end <= 0:
                break
            if part.rows is not None and part.rows <= begin - at:
                at += part.rows
            else:
                at += yield from self._part(part, max(0, begin - at), end)
        reached = at if source.take is None else min(at, source.take)
        return max(0, begin - max(reached, source.skip))

    def _part(self, part: StreamPart, begin: int, end: int | None) -> Generator[Raw, None, int]:
        """Rows `begin` to `end` of a part; gives how many it has up to `end`."""
        reading, count = self._reading(part), begin
        batches = read_batches(self.folder / part.file, begin) if part.file else _hub_batches(part, begin)
        with closing(batches):
            for batch in batches:
                for number, row in batch.rows:
                    if end is not None and count >= end:
                        return count
                    yield part.label, number, row, reading
                    count += 1
        return count

    def _reading(self, part: StreamPart) -> Reading:
        function = None if part.plugin is None else self._functions[part.plugin]
        here = (self.folder / part.file).parent if part.file else None
        return Reading(part.columns, part.messages, function, here)


def _hub_batches(part: StreamPart, begin: int) -> Generator[Batch, None, None]:
    """Rows of a hub's dataset as they arrive; those to pass over arrive too."""
    import datasets

    from stages.sources.hub import reporting

    with reporting("hf", "dataset", part.name, part.commit), explained(f"hf::{part.name}"):
        rows = datasets.load_dataset(part.name, part.subset, split=part.split, revision=part.commit, streaming=True)
        done = 0
        for table in rows.with_format("arrow").iter(ROWS_A_BATCH):
            if done + table.num_rows > begin:
                values = table.slice(max(0, begin - done)).to_pylist()
                yield Batch(list(enumerate(values, start=max(begin, done) + 1)), 0.5)
            done += table.num_rows

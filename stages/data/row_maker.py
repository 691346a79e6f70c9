"""Makes standard rows of what a file holds: `RowMaker(seed=42).make({"query": "q", "response": "r"}, reading)`."""

from __future__ import annotations

from logging import Logger
from typing import Any

from stages.data.media import MediaFinder
from stages.data.readers import Malformed
from stages.data.rows import RowError, Standardizer
from stages.data.rows.columns import MEDIA as MEDIA_COLUMNS
from stages.data.rows.values import check_encodable
from stages.data.self_cognition import SelfCognition
from stages.data.spec import Reading
from stages.errors import MartletError

__all__ = ["RowMaker"]

MEDIA = frozenset(MEDIA_COLUMNS)


class RowMaker:
    """All that happens to a row by itself, in order: a plugin's function, its format, the model's names, its media."""

    def __init__(self, seed: int, *, names: SelfCognition | None = None, media: MediaFinder | None = None) -> None:
        """
        Args:
            seed: for drawing one of several answers.
            names: for self-cognition rows; without it their placeholders are an error.
            media: without it media stay as the rows name them.
        """
        self.names = names or SelfCognition()
        self._seed = seed
        self._media = media
        self._standardizers: dict[tuple[Any, ...], Standardizer] = {}
        self._last: tuple[Reading, Standardizer] | None = None

    def make(self, row: dict[str, Any] | Malformed, reading: Reading) -> dict[str, Any] | None:
        """The standard row; its media are absolute paths and web addresses. None if the plugin's function drops it.

        Raises:
            RowError: the row is no use.
            DataError: a placeholder for the model's name would stay.
        """
        if reading.function is not None and not isinstance(row, Malformed):
            given = _call(reading, row)
            if given is None:
                return None
            row = given
        if self._last is None or self._last[0] is not reading:
            self._last = (reading, self._standardizer(reading))
        standard = self._last[1].standardize(row)
        self.names.fill(standard, None if isinstance(row, Malformed) else row.get("tag"))
        if self._media is not None and len(standard) > 1 and not MEDIA.isdisjoint(standard):
            self._media.find(standard, [folder for folder in (reading.here, reading.folder) if folder is not None])
        return standard

    def report(self, logger: Logger) -> None:
        """Says what about all rows may be a surprise."""
        self.names.report(logger)
        for standardizer in self._standardizers.values():
            for column, what in standardizer.never_seen.items():
                logger.warning("no row has the column %r, which is to be read as %s", column, what)
        if self._media is not None:
            self._media.report(logger)

    def _standardizer(self, reading: Reading) -> Standardizer:
        """One for all parts of datasets that are read alike, so that a draw goes on from one file to the next."""
        key = (tuple(sorted(reading.columns.items())), tuple(sorted(reading.messages.items())))
        if key not in self._standardizers:
            self._standardizers[key] = Standardizer(self._seed, reading.columns, reading.messages)
        return self._standardizers[key]


def _call(reading: Reading, row: dict[str, Any]) -> dict[str, Any] | None:
    assert reading.function is not None
    try:
        made = reading.function(dict(row))
    except MartletError:
        raise
    except Exception as error:
        raise RowError(f"the plugin's function fails: {type(error).__name__}: {error}", "plugin") from error
    if made is not None and not isinstance(made, dict):
        raise RowError(f"the plugin's function gives {made!r:.80}, not a row", "plugin")
    try:
        check_encodable(made)
    except ValueError as error:
        raise RowError(f"the plugin's function gives text that is not Unicode: {error}", "plugin") from None
    return made

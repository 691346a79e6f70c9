"""A data file, opened for reading whether compressed or not: `with Opened(path) as source: source.lines()`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from stages.errors import DataError

__all__ = ["BOM", "COMPRESSIONS", "Opened", "format_of"]

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".lz4": "lz4"}
BOM = b"\xef\xbb\xbf"
BUFFER_BYTES = 1 << 20

# What a file begins with that is not what its name says, and what to do about it.
IMPOSTORS = (
    (b"\xff\xfe", "is in UTF-16: save it as UTF-8"),
    (b"\xfe\xff", "is in UTF-16: save it as UTF-8"),
    (b"\x1f\x8b", "is compressed by gzip: add .gz to its name"),
    (b"PK\x03\x04", "is a zip archive or a spreadsheet: unpack it, or save it as CSV"),
    (b"PAR1", "is a Parquet file: name it .parquet"),
    (b"ARROW1", "is an Arrow file: name it .arrow"),
    (b"version https://git-lfs", "is not the data but its Git LFS pointer: fetch it with git lfs pull"),
    (b"<!DOCTYPE html", "is a web page, not data: download the file itself"),
    (b"<html", "is a web page, not data: download the file itself"),
)


def format_of(path: Path) -> str:
    """The suffix that says the format, without that of the compression: `.jsonl` of `rows.jsonl.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSIONS and suffixes[:-1] not in ([".parquet"], [".arrow"]):
        suffixes = suffixes[:-1]
    return suffixes[-1] if suffixes else ""


class Opened:
    """An opened file that knows how far it has been read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = path.stat().st_size
        self._raw = path.open("rb", buffering=BUFFER_BYTES)
        self._stream: IO[bytes] = self._raw
        self._compression = path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else ""

    @property
    def position(self) -> float:
        """Share of the file that has been read, 0 to 1."""
        return min(1.0, self._raw.tell() / self._size)

    def read(self) -> bytes:
        """All of it."""
        return self._stream.read()

    def lines(self) -> Iterator[bytes]:
        """Its lines, without the mark that some editors put before the first."""
        for number, line in enumerate(self._stream):
            yield line if number else line.removeprefix(BOM)

    def text_lines(self) -> Iterator[str]:
        """Its lines as text.

        Raises:
            UnicodeDecodeError: a line is not in UTF-8.
        """
        for line in self.lines():
            yield line.decode("utf-8")

    def __enter__(self) -> Opened:
        try:
            self._stream = self._decompressed()
            self._check_start()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        import lzma

        self._stream.close()
        self._raw.close()
        if isinstance(error, (OSError, EOFError, lzma.LZMAError)) and self._compression:
            reason = str(error) or type(error).__name__
            raise DataError(f"{self.path.name} is not a whole {self._compression} file: {reason}") from error

    def _decompressed(self) -> IO[bytes]:
        if not self._compression:
            return self._raw
        if self._compression == ".xz":
            import lzma

            return lzma.open(self._raw)
        import pyarrow as pa

        native: Any = pa.CompressedInputStream(self._raw, COMPRESSIONS[self._compression])
        return io.BufferedReader(native, BUFFER_BYTES)

    def _check_start(self) -> None:
        """Names what is no text at all, or not in UTF-8, before rows are made of it."""
        start: bytes = self._stream.peek(64)[:64]  # type: ignore[attr-defined]
        for mark, advice in IMPOSTORS:
            if start.startswith(mark):
                raise DataError(f"{self.path.name} {advice}")
        if len(start) >= 8 and 0 in start and (not any(start[0:16:2]) or not any(start[1:16:2])):
            raise DataError(f"{self.path.name} is in UTF-16: save it as UTF-8")

"""Reads rows out of files, a batch at a time: `for batch in read_batches(Path("alpaca.jsonl")): …`.

JSON lines, JSON, CSV and Parquet; the first three also compressed (.gz, .bz2, .zst, .lz4).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from stages.errors import DataError

__all__ = ["DATA_SUFFIXES", "Batch", "Malformed", "data_files", "read_batches"]

ROWS_A_BATCH = 1024
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
BOM = b"\xef\xbb\xbf"
SURPLUS = "\0surplus"


@dataclass(frozen=True)
class Malformed:
    """Stands where a row could not be read."""

    reason: str


Row = dict[str, Any] | Malformed


@dataclass(frozen=True)
class Batch:
    """Some rows of a file.

    Attributes:
        rows: each with its number in the file: the line in JSON lines and CSV, else counted from 1.
        position: share of the file that has been read, 0 to 1.
    """

    rows: list[tuple[int, Row]]
    position: float


def read_batches(path: Path) -> Iterator[Batch]:
    """The rows of one file; memory is bounded, but for .json, which is read as a whole.

    Raises:
        DataError: the file is empty, cut off, or not of the format that its name promises.
    """
    if path.stat().st_size == 0:
        raise DataError(f"{path.name} is empty")
    yield from READERS[_format(path)](path)


def data_files(path: Path) -> list[Path]:
    """The files to read at a path: itself, or every data file under it, sorted; hidden ones are left out.

    Raises:
        DataError: there is none of a known format.
    """
    formats = ", ".join(DATA_SUFFIXES)
    if path.is_file():
        if _format(path) not in READERS:
            raise DataError(f"{path} is not of a known format. Choose from: {formats}")
        return [path]
    files = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file()
        and _format(file) in READERS
        and not any(p.startswith(".") for p in file.relative_to(path).parts)
    ]
    if not files:
        raise DataError(f"{path} holds no data file. Known formats: {formats}")
    return files


def _format(path: Path) -> str:
    suffixes = path.suffixes
    if suffixes and suffixes[-1] in COMPRESSIONS and suffixes[-2:-1] != [".parquet"]:
        suffixes = suffixes[:-1]
    return suffixes[-1].lower() if suffixes else ""


class _Source:
    """An opened file that knows how far it has been read, whether compressed or not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = path.stat().st_size
        self._raw = path.open("rb")
        self.stream: IO[bytes] = self._raw
        if path.suffix in COMPRESSIONS:
            import pyarrow as pa

            native = pa.CompressedInputStream(self._raw, COMPRESSIONS[path.suffix])
            self.stream = io.BufferedReader(native, 1 << 20)

    @property
    def position(self) -> float:
        return min(1.0, self._raw.tell() / self._size)

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.stream.close()
        self._raw.close()
        if isinstance(error, (OSError, EOFError)) and self.path.suffix in COMPRESSIONS:
            raise DataError(f"{self.path.name} is not a whole {self.path.suffix} file: {error}") from error


def _batched(rows: Iterator[tuple[int, Row]], position: Callable[[], float]) -> Iterator[Batch]:
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == ROWS_A_BATCH:
            yield Batch(batch, position())
            batch = []
    if batch:
        yield Batch(batch, 1.0)


def _read_json_lines(path: Path) -> Iterator[Batch]:
    with _Source(path) as source:
        yield from _batched(_json_lines(source.stream), lambda: source.position)


def _json_lines(lines: Iterator[bytes] | IO[bytes]) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(lines, start=1):
        text = line.removeprefix(BOM) if number == 1 else line
        if text.strip():
            yield number, _row(_parse(text))


def _parse(text: bytes) -> Any:
    import orjson

    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return Malformed(f"not JSON: {error}")


def _row(value: Any) -> Row:
    if isinstance(value, (dict, Malformed)):
        return value
    return Malformed(f"a row is an object with named columns, not {_kind(value)}")


def _kind(value: Any) -> str:
    kinds = {
        list: "a list",
        str: "a text",
        int: "a number",
        float: "a number",
        bool: "true or false",
        type(None): "null",
    }
    return kinds.get(type(value), type(value).__name__)


def _read_json(path: Path) -> Iterator[Batch]:
    """A list of objects; also JSON lines under the name .json, which are common, and one object alone."""
    with _Source(path) as source:
        text = source.stream.read().removeprefix(BOM)
    if not text.strip():
        raise DataError(f"{path.name} is empty")
    value = _parse(text)
    if isinstance(value, Malformed):
        first = text.strip().partition(b"\n")[0]
        if not isinstance(_parse(first), dict):
            raise DataError(f"{path.name} is {value.reason}")
        yield from _batched(_json_lines(iter(text.split(b"\n"))), lambda: 0.5)
        return
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    values = value if isinstance(value, list) else [value]
    if not values:
        raise DataError(f"{path.name} holds an empty list")
    rows = ((number, _row(one)) for number, one in enumerate(values, start=1))
    yield from _batched(rows, lambda: 0.5)


def _read_csv(path: Path) -> Iterator[Batch]:
    """A header, then one row each; every value is text, as a number's digits are part of an answer."""
    csv.field_size_limit(1 << 30)
    delimiter = "\t" if _format(path) == ".tsv" else ","
    with _Source(path) as source:
        lines = io.TextIOWrapper(source.stream, encoding="utf-8-sig", newline="")
        try:
            reader = csv.DictReader(lines, delimiter=delimiter, restkey=SURPLUS, strict=True)
            columns = list(reader.fieldnames or [])
            if not columns or len(set(columns)) < len(columns):
                raise DataError(
                    f"{path.name} needs a first line with a different name for each column; it has {columns}"
                )
            yield from _batched(_csv_rows(reader, len(columns)), lambda: source.position)
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path.name} is not CSV in UTF-8: {error}") from error
        finally:
            lines.detach()


def _csv_rows(reader: csv.DictReader[str], num_columns: int) -> Iterator[tuple[int, Row]]:
    for row in reader:
        if SURPLUS in row:
            more = num_columns + len(row[SURPLUS])
            yield reader.line_num, Malformed(f"{more} values for {num_columns} columns")
        else:
            yield reader.line_num, row


def _read_parquet(path: Path) -> Iterator[Batch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        total = file.metadata.num_rows
        if not total:
            raise DataError(f"{path.name} has no rows")
        done = 0
        for batch in file.iter_batches(batch_size=ROWS_A_BATCH):
            rows = list(enumerate(batch.to_pylist(), start=done + 1))
            done += len(rows)
            yield Batch(rows, done / total)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path.name} is not a whole Parquet file: {str(error).splitlines()[0]:.200}") from error


READERS: dict[str, Callable[[Path], Iterator[Batch]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
DATA_SUFFIXES = tuple(READERS)

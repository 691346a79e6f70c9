"""Reads rows out of files, a batch at a time: `for batch in read_batches(Path("alpaca.jsonl")): …`.

JSON lines, JSON, CSV, TSV and text, also compressed (.gz, .bz2, .xz, .zst, .lz4); Parquet and Arrow.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from stages.data.opened import BOM, Opened, format_of
from stages.data.spec import Reading
from stages.errors import DataError

__all__ = ["DATA_SUFFIXES", "ROWS_A_BATCH", "Batch", "Malformed", "Row", "count_rows", "read_batches"]

ROWS_A_BATCH = 1024
BYTES_A_BATCH = 16_000_000


@dataclass(frozen=True)
class Malformed:
    """Stands where a row could not be read."""

    reason: str


Row = dict[str, Any] | Malformed


@dataclass(frozen=True)
class Batch:
    """Some rows of a file.

    Attributes:
        rows: each with its number in the file: the line in JSON lines, CSV and text, else counted from 1.
        position: share of the file that has been read, 0 to 1.
        reading: how the rows are to be understood.
    """

    rows: list[tuple[int, Row]]
    position: float
    reading: Reading = field(default_factory=Reading)


def read_batches(path: Path, start: int = 0) -> Generator[Batch, None, None]:
    """The rows of one file; memory is bounded by a few batches, but for .json, which is read as a whole.

    Args:
        path: the file; its name says the format.
        start: how many rows to pass over; they are not parsed where the format allows.

    Raises:
        DataError: the file is empty, cut off, or not of the format that its name promises.
    """
    if path.stat().st_size == 0:
        raise DataError(f"{path.name} is empty")
    yield from READERS[format_of(path)](path, start)


def count_rows(path: Path) -> int:
    """How many rows a file has, malformed ones among them; they are not parsed where the format allows.

    Raises:
        DataError: as `read_batches`.
    """
    if path.stat().st_size == 0:
        raise DataError(f"{path.name} is empty")
    suffix = format_of(path)
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        next(read_batches(path))  # says what is wrong with it
        return int(pq.read_metadata(path).num_rows)
    if suffix in (".jsonl", ".txt"):
        with Opened(path) as source:
            count = sum(1 for _ in _lines(source, 0))
        if not count:
            raise DataError(f"{path.name} has no rows")
        return count
    return sum(len(batch.rows) for batch in read_batches(path))


def _batched(rows: Iterator[tuple[int, Row, int]], position: Callable[[], float]) -> Iterator[Batch]:
    """Batches of so many rows, or fewer where these are large; each row comes with its size in bytes."""
    batch: list[tuple[int, Row]] = []
    total = 0
    for number, row, size in rows:
        batch.append((number, row))
        total += size
        if len(batch) == ROWS_A_BATCH or total > BYTES_A_BATCH:
            yield Batch(batch, position())
            batch, total = [], 0
    if batch:
        yield Batch(batch, 1.0)


def _read_json_lines(path: Path, start: int) -> Iterator[Batch]:
    with Opened(path) as source:
        rows = _json_rows(path, _lines(source, start), start)
        yield from _checked(_batched(rows, lambda: source.position), path, start)


def _json_rows(path: Path, lines: Iterator[tuple[int, bytes]], start: int) -> Iterator[tuple[int, Row, int]]:
    for index, (number, line) in enumerate(lines, start=start):
        value = _parse(line)
        if index == 0 and not isinstance(value, dict) and (line.strip() in (b"[", b"{") or isinstance(value, list)):
            raise DataError(f"{path.name} is one JSON text, not one in each line: name it .json")
        if isinstance(value, Malformed):
            value = _parse(line.rstrip(b"\r\n"))  # so that the end of the data is in this line
        yield number, _row(value), len(line)


def _read_text(path: Path, start: int) -> Iterator[Batch]:
    """A row for each line."""
    with Opened(path) as source:
        rows = ((number, _text_row(line), len(line)) for number, line in _lines(source, start))
        yield from _checked(_batched(rows, lambda: source.position), path, start)


def _lines(source: Opened, start: int) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers; blank ones are no rows."""
    numbered = enumerate(source.lines(), start=1)
    filled = ((number, line) for number, line in numbered if line and not line.isspace())
    return islice(filled, start, None)


def _checked(batches: Iterator[Batch], path: Path, start: int) -> Iterator[Batch]:
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty and not start:
        raise DataError(f"{path.name} has no rows")


def _text_row(line: bytes) -> Row:
    try:
        text = line.rstrip(b"\r\n").decode("utf-8")
    except UnicodeDecodeError as error:
        return Malformed(_not_utf8(error))
    return Malformed("it has a NUL byte") if "\0" in text else {"text": text}


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not in UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start + 1}"


def _parse(text: bytes) -> Any:
    import orjson

    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        try:
            text.decode("utf-8")
        except UnicodeDecodeError as other:
            return Malformed(_not_utf8(other))
        where = f" at column {error.colno}" if error.lineno == 1 else f" at line {error.lineno}, column {error.colno}"
        return Malformed(f"not JSON: {error.msg}{where}")


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


def _read_json(path: Path, start: int) -> Iterator[Batch]:
    """A list of objects; also JSON lines under the name .json, which are common, and one object alone."""
    with Opened(path) as source:
        text = source.read().removeprefix(BOM)
    if not text.strip():
        raise DataError(f"{path.name} is empty")
    value = _parse(text)
    if isinstance(value, Malformed):
        first = text.strip().partition(b"\n")[0]
        if not isinstance(_parse(first), dict):
            raise DataError(f"{path.name} is {value.reason}")
        yield from _read_json_lines(path, start)
        return
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    values = value if isinstance(value, list) else [value]
    if not values:
        raise DataError(f"{path.name} holds an empty list")
    rows = ((start + number, _row(one), 0) for number, one in enumerate(values[start:], start=1))
    yield from _batched(rows, lambda: 0.5)


def _read_csv(path: Path, start: int) -> Iterator[Batch]:
    """A header, then one row each; every value is text, as a number's digits are part of an answer."""
    csv.field_size_limit(1 << 30)
    delimiter = "\t" if format_of(path) == ".tsv" else ","
    with Opened(path) as source:
        reader = csv.reader(source.text_lines(), delimiter=delimiter, strict=True)
        try:
            columns = next(reader, [])
            _check_header(path, columns)
            rows = _csv_rows(reader, columns)
            rest = islice(rows, start, None)
            yield from _checked(_batched(rest, lambda: source.position), path, start)
        except UnicodeDecodeError as error:
            line = reader.line_num + 1
            raise DataError(f"{path.name} line {line} is {_not_utf8(error)}. Save the file as UTF-8") from error
        except csv.Error as error:
            raise DataError(f"{path.name} line {reader.line_num} is not CSV: {error}") from error


def _check_header(path: Path, columns: list[str]) -> None:
    if not columns or "" in columns or len(set(columns)) < len(columns):
        raise DataError(f"{path.name} needs a first line with a different name for each column; it has {columns}")
    if len(columns) == 1 and (other := next((mark for mark in ";\t|" if mark in columns[0]), "")):
        raise DataError(
            f"{path.name} has one column, {columns[0]!r:.80}: it seems to be separated by {other!r}. "
            + ("Name it .tsv" if other == "\t" else "Separate its values by commas")
        )


def _csv_rows(reader: Any, columns: list[str]) -> Iterator[tuple[int, Row, int]]:
    for values in reader:
        if not values:
            continue
        size = sum(map(len, values))
        if len(values) != len(columns):
            what = f"{len(values)} value{'s' * (len(values) > 1)} for {len(columns)} columns"
            yield reader.line_num, Malformed(what), size
        elif any("\0" in value for value in values):
            yield reader.line_num, Malformed("it has a NUL byte"), size
        else:
            yield reader.line_num, dict(zip(columns, values, strict=True)), size


def _read_parquet(path: Path, start: int) -> Iterator[Batch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            total = file.metadata.num_rows
            if not total:
                raise DataError(f"{path.name} has no rows")
            first, passed = 0, 0
            while first < file.num_row_groups and passed + file.metadata.row_group(first).num_rows <= start:
                passed += file.metadata.row_group(first).num_rows
                first += 1
            batches = file.iter_batches(batch_size=ROWS_A_BATCH, row_groups=range(first, file.num_row_groups))
            yield from _from_tables(batches, passed, start, total)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise DataError(f"{path.name} is not a whole Parquet file: {str(error).splitlines()[0]:.200}") from error


def _read_arrow(path: Path, start: int) -> Iterator[Batch]:
    """Arrow's file format and its stream format, which the `datasets` library writes."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as mapped:
            is_file = mapped.read(6) == b"ARROW1"
            mapped.seek(0)
            size = path.stat().st_size
            if is_file:
                opened = pa.ipc.open_file(mapped)
                batches = (opened.get_batch(index) for index in range(opened.num_record_batches))
            else:
                batches = iter(pa.ipc.open_stream(mapped))
            empty = True
            for batch in _from_tables(batches, 0, start, None):
                empty = False
                yield replace(batch, position=0.5 if is_file else min(1.0, mapped.tell() / size))
            if empty and not start:
                raise DataError(f"{path.name} has no rows")
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path.name} is not a whole Arrow file: {str(error).splitlines()[0]:.200}") from error


def _from_tables(tables: Iterator[Any], done: int, start: int, total: int | None) -> Iterator[Batch]:
    """Rows of Arrow's batches from the row `start` on; `done` rows come before the first batch."""
    for table in tables:
        for offset in range(0, table.num_rows, ROWS_A_BATCH):
            piece = table.slice(offset, ROWS_A_BATCH)
            if done + piece.num_rows > start:
                piece = piece.slice(max(0, start - done))
                done = max(done, start)
                rows: list[tuple[int, Row]] = list(enumerate(piece.to_pylist(), start=done + 1))
                yield Batch(rows, (done + len(rows)) / total if total else 0.5)
            done += piece.num_rows


READERS: dict[str, Callable[[Path, int], Iterator[Batch]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".txt": _read_text,
}
DATA_SUFFIXES = tuple(READERS)

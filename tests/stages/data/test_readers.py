from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.data.readers import Malformed, count_rows, read_batches
from stages.errors import DataError

ROWS = [{"query": "q1", "response": "r1"}, {"query": "q2", "response": 'é,\n"r2"'}]


def rows_of(path: Path) -> list[tuple[int, Any]]:
    return [row for batch in read_batches(path) for row in batch.rows]


def write_parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), path)


def write_arrow(path: Path, kind: str) -> None:
    import pyarrow as pa

    table = pa.Table.from_pylist(ROWS)
    with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(str(path), table.schema) as writer:
        writer.write_table(table)


def compress(path: Path, codec: str) -> None:
    import pyarrow as pa

    with pa.CompressedOutputStream(str(path), codec) as out:
        out.write(LINES.encode())


LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = 'query,response\nq1,r1\nq2,"é,\n""r2"""\n'


@pytest.mark.parametrize(
    ("name", "write", "numbers"),
    [
        ("a.jsonl", lambda path: path.write_text(LINES), [1, 2]),
        ("a.jsonl", lambda path: path.write_bytes(b"\xef\xbb\xbf" + LINES.encode()), [1, 2]),
        ("a.jsonl", lambda path: path.write_text("\n" + LINES.replace("\n", "\n\n").rstrip()), [2, 4]),
        ("a.json", lambda path: path.write_text(json.dumps(ROWS)), [1, 2]),
        ("a.json", lambda path: path.write_text(json.dumps({"data": ROWS}, indent=2)), [1, 2]),
        ("a.json", lambda path: path.write_text(LINES), [1, 2]),
        ("a.csv", lambda path: path.write_text(CSV), [2, 4]),
        ("a.csv", lambda path: path.write_bytes(b"\xef\xbb\xbf" + CSV.encode()), [2, 4]),
        ("a.tsv", lambda path: path.write_text(CSV.replace(",r", "\tr").replace("q2,", "q2\t")), [2, 4]),
        ("a.parquet", write_parquet, [1, 2]),
        ("a.jsonl.gz", lambda path: path.write_bytes(gzip.compress(LINES.encode())), [1, 2]),
        ("a.json.gz", lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())), [1, 2]),
        ("a.csv.bz2", lambda path: path.write_bytes(bz2.compress(CSV.encode())), [2, 4]),
        ("a.JSONL.xz", lambda path: path.write_bytes(lzma.compress(LINES.encode())), [1, 2]),
        ("a.jsonl.zst", lambda path: compress(path, "zstd"), [1, 2]),
        ("a.jsonl.lz4", lambda path: compress(path, "lz4"), [1, 2]),
        ("a.arrow", lambda path: write_arrow(path, "file"), [1, 2]),
        ("a.arrow", lambda path: write_arrow(path, "stream"), [1, 2]),
        ("a.jsonl", lambda path: path.write_bytes(LINES.replace("\n", "\r\n").encode()), [1, 2]),
        (
            "a.jsonl.gz",
            lambda path: path.write_bytes(b"".join(map(gzip.compress, LINES.encode().splitlines(True)))),
            [1, 2],
        ),
    ],
)
def test_every_format_gives_the_same_rows(
    tmp_path: Path, name: str, write: Callable[[Path], Any], numbers: list[int]
) -> None:
    write(tmp_path / name)
    assert rows_of(tmp_path / name) == list(zip(numbers, ROWS, strict=True))


def test_numbers_in_csv_stay_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("query,response\n007,1.50\n")
    assert rows_of(tmp_path / "a.csv") == [(2, {"query": "007", "response": "1.50"})]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.parquet", "a.arrow", "a.jsonl.gz"])
def test_it_may_begin_at_any_row(tmp_path: Path, name: str) -> None:
    """With the same numbers; blank lines and lines inside of quotes are no rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"query": f"q{number}\n", "response": "r"} for number in range(2500)]
    table, path = pa.Table.from_pylist(rows), tmp_path / name
    lines = "".join(json.dumps(row) + "\n" * (number % 3 + 1) for number, row in enumerate(rows))
    mark = "\t" if name == "a.tsv" else ","
    values = f"query{mark}response\n" + "".join(f'"q{number}\n"{mark}r\n' for number in range(2500))
    match name.removeprefix("a."):
        case "jsonl" | "txt":
            path.write_text(lines)
        case "jsonl.gz":
            path.write_bytes(gzip.compress(lines.encode()))
        case "json":
            path.write_text(json.dumps(rows))
        case "csv" | "tsv":
            path.write_text(values)
        case "parquet":
            pq.write_table(table, path, row_group_size=700)
        case "arrow":
            with pa.ipc.new_file(str(path), table.schema) as writer:
                writer.write_table(table, max_chunksize=900)
    whole = rows_of(path)
    assert len(whole) == count_rows(path) == 2500
    for start in (0, 1, 699, 700, 1024, 2499, 2500, 9999):
        rest = [row for batch in read_batches(path, start) for row in batch.rows]
        assert rest == whole[start:], start


def test_text_gives_a_row_for_each_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\n\n  two \r\nthree")
    assert rows_of(tmp_path / "a.txt") == [(1, {"text": "one"}), (3, {"text": "  two "}), (4, {"text": "three"})]


def test_a_saved_dataset_is_read(tmp_path: Path) -> None:
    import datasets

    from stages.data.files import data_files

    datasets.disable_progress_bars()
    datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    ).save_to_disk(str(tmp_path / "saved"))
    (file,) = data_files(tmp_path / "saved")
    assert [row for _, row in rows_of(file)] == ROWS


def test_rows_of_different_schemas_stay_as_they_are(tmp_path: Path) -> None:
    mixed = [{"a": 1}, {"a": "x", "b": [1, {"c": None}]}, {"a": None}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))
    assert [row for _, row in rows_of(tmp_path / "a.jsonl")] == mixed
    (tmp_path / "a.json").write_text(json.dumps(mixed))
    assert [row for _, row in rows_of(tmp_path / "a.json")] == mixed


def test_a_line_of_50_mb_is_a_row(tmp_path: Path) -> None:
    import time

    long = "x" * 50_000_000
    (tmp_path / "a.jsonl").write_text(LINES + json.dumps({"query": long, "response": "r"}) + "\n" + LINES)
    began = time.monotonic()
    assert [len(row["query"]) for _, row in rows_of(tmp_path / "a.jsonl")] == [2, 2, 50_000_000, 2, 2]
    assert time.monotonic() - began < 10


def test_large_rows_make_small_batches(tmp_path: Path) -> None:
    row = json.dumps({"query": "q", "response": "x" * 2_000_000}) + "\n"
    (tmp_path / "a.jsonl").write_text(row * 20)
    assert [len(batch.rows) for batch in read_batches(tmp_path / "a.jsonl")] == [8, 8, 4]


BROKEN = LINES * 3 + "{broken\n" + LINES


@pytest.mark.parametrize(
    ("name", "content", "number", "reason"),
    [
        ("a.jsonl", BROKEN, 7, "not JSON: unexpected character, expected a string key at column 2"),
        ("a.json", BROKEN, 7, "not JSON: unexpected character, expected a string key at column 2"),
        ("a.jsonl", LINES + '{"query":\n', 3, "not JSON: unexpected end of data at column 10"),
        ("a.jsonl", LINES + '{"query": "cut o', 3, "not JSON: unexpected end of data at column 17"),
        ("a.jsonl", LINES + "{'query': 1}\n", 3, "not JSON: unexpected character, expected a string key at column 2"),
        (
            "a.jsonl",
            LINES + '{"query": NaN}\n',
            3,
            "not JSON: unexpected character, expected a JSON value at column 11",
        ),
        ("a.jsonl", LINES + '{"a": 1} {"a": 2}\n', 3, "not JSON: unexpected content after document at column 10"),
        ("a.jsonl", LINES + "[1]\n", 3, "a row is an object with named columns, not a list"),
        ("a.jsonl", LINES + '"text"\n', 3, "a row is an object with named columns, not a text"),
        ("a.jsonl", LINES + "null\n", 3, "a row is an object with named columns, not null"),
        ("a.jsonl", LINES + "true\n", 3, "a row is an object with named columns, not true or false"),
        ("a.jsonl", LINES + '{"a": "x\0y"}\n', 3, "not JSON: unexpected control character in string at column 9"),
        ("a.jsonl", LINES + "\0\0\0\n", 3, "not JSON: unexpected character, expected a JSON value at column 1"),
        ("a.jsonl", LINES.encode() + '{"a": "é"}\n'.encode("latin-1"), 3, "not in UTF-8: byte 0xe9 at position 8"),
        ("a.jsonl", LINES + '{"a": "\\ud83d"}\n', 3, "not JSON: no low surrogate in string at column 8"),
        ("a.json", "[1, 2]", 1, "a row is an object with named columns, not a number"),
        ("a.csv", "query,response\na,b,c\n", 2, "3 values for 2 columns"),
        ("a.csv", "query,response\na,b\nc\n", 3, "1 value for 2 columns"),
        ("a.csv", "query,response\na,b\0c\n", 2, "it has a NUL byte"),
        ("a.tsv", "query\tresponse\na\tb\tc\td\n", 2, "4 values for 2 columns"),
        ("a.txt", "good\nb\0d\n", 2, "it has a NUL byte"),
        ("a.txt", b"good\nb\xe9d\n", 2, "not in UTF-8: byte 0xe9 at position 2"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: str | bytes, number: int, reason: str
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    found = [(at, row.reason) for at, row in rows_of(tmp_path / name) if isinstance(row, Malformed)]
    assert found[:1] == [(number, reason)]


def parquet(rows: int) -> bytes:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table({"query": ["q"] * rows}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl is empty"),
        ("a.jsonl", b"\n \n", "a.jsonl has no rows"),
        ("a.jsonl", b"\xef\xbb\xbf", "a.jsonl has no rows"),
        ("a.txt", b"\n\n", "a.txt has no rows"),
        ("a.json", b"  \n", "a.json is empty"),
        ("a.json", b"[]", "a.json holds an empty list"),
        ("a.json", b'{"data": []}', "a.json holds an empty list"),
        ("a.json", b'[{"query": "q"}', "a.json is not JSON: unexpected end of data at column 16"),
        ("a.json", b'[\n{"query": "q"},\n{"query" "q"}\n]', "a.json is not JSON: unexpected character, expected"),
        ("a.csv", b"query,query\n1,2\n", "a.csv needs a first line with a different name for each column; it has"),
        ("a.csv", b"query,\n1,2\n", "a.csv needs a first line with a different name for each column; it has"),
        ("a.csv", b"query,response\n", "a.csv has no rows"),
        ("a.csv", b"query;response\na;b\n", "a.csv has one column, 'query;response': it seems to be separated by ';'"),
        ("a.csv", b"query\tresponse\na\tb\n", r"separated by '\\t'. Name it .tsv"),
        (
            "a.csv",
            "query,response\né,b\n".encode("latin-1"),
            "a.csv line 2 is not in UTF-8: byte 0xe9 at position 1. Save",
        ),
        ("a.csv", b'query,response\n"a,b\n', "a.csv line 2 is not CSV: unexpected end of data"),
        ("a.csv", b'query,response\n"a"x,b\n', "a.csv line 2 is not CSV: ',' expected after"),
        ("a.csv", LINES.encode("utf-16"), "a.csv is in UTF-16: save it as UTF-8"),
        ("a.jsonl", LINES.encode("utf-16"), "a.jsonl is in UTF-16: save it as UTF-8"),
        ("a.jsonl", LINES.encode("utf-16-le"), "a.jsonl is in UTF-16: save it as UTF-8"),
        ("a.json", LINES.encode("utf-16-be"), "a.json is in UTF-16: save it as UTF-8"),
        ("a.parquet", b"PAR1 and no more", "a.parquet is not a whole Parquet file"),
        ("a.parquet", parquet(0), "a.parquet has no rows"),
        ("a.parquet", parquet(500)[:-9], "a.parquet is not a whole Parquet file"),
        ("a.jsonl", parquet(1), "a.jsonl is a Parquet file: name it .parquet"),
        ("a.arrow", b"ARROW1 and no more", "a.arrow is not a whole Arrow file"),
        ("a.arrow", b"\0" * 64, "a.arrow is not a whole Arrow file|a.arrow has no rows"),
        ("a.jsonl", gzip.compress(LINES.encode(), mtime=0), "a.jsonl is compressed by gzip: add .gz to its name"),
        ("a.csv", b"PK\x03\x04 a spreadsheet", "a.csv is a zip archive or a spreadsheet: unpack it, or save it as CSV"),
        ("a.json", b"version https://git-lfs.github.com/spec/v1\n", "is not the data but its Git LFS pointer"),
        ("a.jsonl", json.dumps(ROWS).encode(), "a.jsonl is one JSON text, not one in each line: name it .json"),
        (
            "a.jsonl",
            json.dumps(ROWS, indent=1).encode(),
            "a.jsonl is one JSON text, not one in each line: name it .json",
        ),
        ("a.json", b"<!DOCTYPE html><html>", "a.json is a web page, not data: download the file itself"),
        ("a.jsonl.gz", gzip.compress(LINES.encode() * 1000, mtime=0)[:-20], "a.jsonl.gz is not a whole .gz file"),
        ("a.jsonl.gz", b"not compressed at all", "a.jsonl.gz is not a whole .gz file"),
        ("a.jsonl.xz", lzma.compress(LINES.encode() * 1000)[:-20], "a.jsonl.xz is not a whole .xz file"),
        ("a.csv.bz2", bz2.compress(CSV.encode() * 1000)[:-20], "a.csv.bz2 is not a whole .bz2 file"),
        ("a.jsonl.zst", b"not compressed at all", "a.jsonl.zst is not a whole .zst file"),
    ],
)
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        rows_of(tmp_path / name)
    assert "\n" not in str(caught.value)

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages.data.files import data_files
from stages.data.readers import Malformed, read_batches
from stages.errors import DataError

ROWS = [{"query": "q1", "response": "r1"}, {"query": "q2", "response": 'é,\n"r2"'}]


def rows_of(path: Path) -> list[tuple[int, Any]]:
    return [row for batch in read_batches(path) for row in batch.rows]


def write_parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), path)


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


@pytest.mark.parametrize(
    ("name", "text", "number", "reason"),
    [
        ("a.jsonl", LINES + "{broken\n" + LINES, 3, "not JSON"),
        ("a.jsonl", LINES + "[1]\n", 3, "a row is an object with named columns, not a list"),
        ("a.jsonl", LINES + '"text"\n', 3, "not a text"),
        ("a.json", "[1, 2]", 1, "not a number"),
        ("a.csv", "query,response\na,b,c\n", 2, "3 values for 2 columns"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path: Path, name: str, text: str, number: int, reason: str) -> None:
    (tmp_path / name).write_text(text)
    found = [(at, row) for at, row in rows_of(tmp_path / name) if isinstance(row, Malformed)]
    assert found[0][0] == number
    assert reason in found[0][1].reason


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl is empty"),
        ("a.json", b"  \n", "a.json is empty"),
        ("a.json", b"[]", "an empty list"),
        ("a.json", b'[{"query": "q"}', "a.json is not JSON"),
        ("a.csv", b"query,query\n1,2\n", "a different name for each column"),
        ("a.csv", "query,response\né,b\n".encode("latin-1"), "a.csv line 2 is not in UTF-8: byte 0xe9 at position 1"),
        ("a.csv", b'query,response\n"a,b\n', "a.csv line 2 is not CSV"),
        ("a.parquet", b"PAR1 and no more", "not a whole Parquet file"),
        ("a.jsonl.gz", gzip.compress(LINES.encode() * 1000)[:-20], "not a whole .gz file"),
        ("a.jsonl.gz", b"not compressed at all", "not a whole .gz file"),
    ],
)
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        rows_of(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_folder_gives_its_data_files_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/x.csv", ".hidden/y.jsonl", "README.md", "a/.z.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(LINES)
    assert [str(path.relative_to(tmp_path)) for path in data_files(tmp_path)] == ["a/x.csv", "b.jsonl"]


def test_files_of_unknown_formats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_text("?")
    with pytest.raises(DataError, match=r"a\.xlsx is not of a known format. Choose from: \.jsonl"):
        data_files(tmp_path / "a.xlsx")
    with pytest.raises(DataError, match="holds no data file"):
        data_files(tmp_path)

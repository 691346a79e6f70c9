"""Rows of benchmarks: every form that is taken, and one line for every one that is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.errors import ArgumentsError, DataError
from stages.evaluation.benchmarks import Benchmark, Subset, parse_benchmark, prepare_rows

QA = Benchmark("general_qa", "local::0")
MCQ = Benchmark("general_mcq", "local::0")


def write_rows(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def prepared(benchmark: Benchmark, data: Path, out: Path, limit: int | None = None) -> tuple[list[Subset], list[Any]]:
    out.mkdir()
    subsets = prepare_rows(benchmark, data, out, limit)
    written = [json.loads(line) for s in subsets for line in (out / f"{s.name}.jsonl").read_text().splitlines()]
    return subsets, written


def test_an_entry_is_a_name_and_a_path() -> None:
    assert parse_benchmark("General_QA:a/b:c.jsonl") == Benchmark("general_qa", "a/b:c.jsonl")
    assert parse_benchmark("general_mcq:local::2").index == "2"
    assert parse_benchmark("general_mcq:rows").index is None
    assert QA.taken_in(3) == "general_qa:local::3"


@pytest.mark.parametrize(
    ("text", "message"),
    [("gsm8k", "gsm8k is not supported yet. Choose from: general_qa"), ("general_qa", "general_qa:PATH")],
)
def test_an_entry_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(ArgumentsError, match=message):
        parse_benchmark(text)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "q", "answer": "a"}, {"question": "q", "answer": "a"}),
        ({"query": "q", "response": "a", "system": "s", "id": 1}, {"question": "q", "answer": "a", "system": "s"}),
        (
            {"messages": [{"role": "user", "content": "q"}], "response": "a"},
            {"messages": [{"role": "user", "content": "q"}], "answer": "a"},
        ),
    ],
)
def test_questions_in_every_form(row: Any, expected: Any, tmp_path: Path) -> None:
    write_rows(tmp_path / "data" / "capitals_test.jsonl", row)
    subsets, rows = prepared(QA, tmp_path / "data", tmp_path / "out")
    assert subsets == [Subset("capitals", 1, is_chinese=False)]
    assert rows == [expected]


def test_choices_from_a_csv(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "sums_val.csv").write_text("id,question,A,B,C,answer\n1,1+1?,2,3,,a\n2,2+2?,2,3,4,C\n")
    subsets, rows = prepared(MCQ, data, tmp_path / "out")
    assert subsets == [Subset("sums", 2, is_chinese=False)]
    assert rows[0] == {"question": "1+1?", "A": "2", "B": "3", "answer": "A"}
    assert rows[1] == {"question": "2+2?", "A": "2", "B": "3", "C": "4", "answer": "C"}


def test_each_file_is_a_subset_and_the_limit_holds_for_all(tmp_path: Path) -> None:
    row = {"question": "法国的首都是哪里？", "answer": "巴黎"}
    write_rows(tmp_path / "data" / "a.jsonl", *[row] * 3)
    write_rows(tmp_path / "data" / "b.jsonl", *[row] * 3)
    write_rows(tmp_path / "data" / "c.jsonl", *[row] * 3)
    subsets, rows = prepared(QA, tmp_path / "data", tmp_path / "out", limit=4)
    assert subsets == [Subset("a", 3, is_chinese=True), Subset("b", 1, is_chinese=True)]
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("benchmark", "row", "message"),
    [
        (QA, {"question": "q"}, "rows.jsonl:2: general_qa needs `answer` or `response`; the row has question"),
        (QA, {"answer": "a", "text": "q"}, "rows.jsonl:2: general_qa needs `question`, `query` or `messages`"),
        (QA, {"messages": [{"role": "user"}], "answer": "a"}, "rows.jsonl:2: `messages` must be a list"),
        (QA, {"messages": "q", "answer": "a"}, "rows.jsonl:2: `messages` must be a list"),
        (QA, ["q"], "rows.jsonl:2: "),
        (MCQ, {"A": "1", "B": "2", "answer": "A"}, "rows.jsonl:2: general_mcq needs `question`"),
        (MCQ, {"question": "q", "A": "1", "answer": "A"}, "rows.jsonl:2: general_mcq needs the choices A, B"),
        (MCQ, {"question": "q", "A": "1", "C": "2", "answer": "A"}, "rows.jsonl:2: general_mcq needs the choices"),
        (MCQ, {"question": "q", "A": "1", "B": "2", "answer": "D"}, "`answer` is 'D'. Choose from: A, B"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(benchmark: Benchmark, row: Any, message: str, tmp_path: Path) -> None:
    good = {"question": "q", "A": "1", "B": "2", "answer": "A"}
    write_rows(tmp_path / "data" / "rows.jsonl", good, row)
    with pytest.raises(DataError) as error:
        prepared(benchmark, tmp_path / "data", tmp_path / "out")
    assert message in str(error.value)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    for place in ("one", "two"):
        write_rows(tmp_path / "data" / place / "rows.jsonl", {"question": "q", "answer": "a"})
    with pytest.raises(DataError, match="two files are called rows"):
        prepared(QA, tmp_path / "data", tmp_path / "out")

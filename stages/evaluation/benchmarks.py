"""Benchmarks from local files: `parse_benchmark("general_qa:questions.jsonl")`, `prepare_rows(benchmark, folder, …)`.

general_qa rows: `question` (or `query`, or `messages`) and `answer` (or `response`), perhaps `system`.
general_mcq rows: `question`, the choices `A`, `B` … and the letter of the right one in `answer`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.errors import ArgumentsError, DataError

__all__ = ["BENCHMARKS", "Benchmark", "Subset", "parse_benchmark", "prepare_rows"]

BENCHMARKS = ("general_qa", "general_mcq")
LETTERS = "ABCDEFGHIJ"
LOCAL = "local::"
# evalscope looks for files of these splits; the ending is no part of the subset's name.
SPLITS = ("_test", "_val")


@dataclass(frozen=True)
class Benchmark:
    """One entry of `--eval_dataset`.

    Attributes:
        name: of the benchmark.
        place: a path on this machine, or `local::0`, the first folder of the input `eval_data`.
    """

    name: str
    place: str

    @property
    def index(self) -> str | None:
        """The folder in `eval_data`, once the path has been taken in."""
        return self.place.removeprefix(LOCAL) if self.place.startswith(LOCAL) else None

    def taken_in(self, index: int) -> str:
        """The entry as it stands in a key: the content counts, the path does not."""
        return f"{self.name}:{LOCAL}{index}"


@dataclass(frozen=True)
class Subset:
    """The rows of one file, as evalscope reads them.

    Attributes:
        name: of the file, without ending.
        num_rows: in it.
        is_chinese: whether any question is.
    """

    name: str
    num_rows: int
    is_chinese: bool


def parse_benchmark(text: str) -> Benchmark:
    """Reads `NAME:PATH`.

    Raises:
        ArgumentsError: an unknown benchmark, or no path.
    """
    name, _, place = text.partition(":")
    name = name.lower()
    if name not in BENCHMARKS:
        raise ArgumentsError(
            f"--eval_dataset {text} is not supported yet. Choose from: {', '.join(BENCHMARKS)}, with :PATH"
        )
    if not place:
        raise ArgumentsError(f"--eval_dataset {text} needs a file or folder of rows: {name}:PATH")
    return Benchmark(name, place)


def prepare_rows(benchmark: Benchmark, data: Path, out: Path, limit: int | None) -> list[Subset]:
    """Checks every row and writes one `SUBSET.jsonl` a file into `out`, which evalscope then reads.

    Args:
        benchmark: which; it decides what a row needs.
        data: a folder of JSON lines, JSON, CSV or Parquet.
        out: an empty folder.
        limit: rows at most, over all files.

    Raises:
        DataError: a row that the benchmark cannot use, named by file and line; no row at all.
    """
    from stages.data.files import data_files

    subsets: list[Subset] = []
    check = _qa_row if benchmark.name == "general_qa" else _mcq_row
    left = limit
    for file in data_files(data, split="all"):
        name = _subset_name(file, [subset.name for subset in subsets])
        rows = []
        for number, row in _rows(file):
            if left == 0:
                break
            rows.append(check(row, f"{file.name}:{number}"))
            left = None if left is None else left - 1
        if rows:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
            subsets.append(Subset(name, len(rows), any(_is_chinese(str(row)) for row in rows)))
    if not subsets:
        raise DataError(f"--eval_dataset {benchmark.name}: the files hold no row")
    return subsets


def _subset_name(file: Path, taken: list[str]) -> str:
    name = file.name.partition(".")[0]
    for ending in SPLITS:
        name = name.removesuffix(ending)
    name = name or "default"
    if name in taken:
        raise DataError(f"--eval_dataset: two files are called {name}: give them names of their own")
    return name


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    from stages.data.readers import Malformed, read_batches

    for batch in read_batches(file):
        for number, row in batch.rows:
            if isinstance(row, Malformed):
                raise DataError(f"{file.name}:{number}: {row.reason}")
            yield number, row


def _qa_row(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    answer = row.get("answer") or row.get("response")
    if not isinstance(answer, str) or not answer.strip():
        raise DataError(f"{place}: general_qa needs `answer` or `response`; the row has {', '.join(row)}")
    if messages := row.get("messages"):
        turns = messages if isinstance(messages, list) else [messages]
        if not all(isinstance(turn, dict) and turn.get("role") and turn.get("content") for turn in turns):
            raise DataError(f"{place}: `messages` must be a list of role and content")
        return {"messages": turns, "answer": answer}
    question = row.get("question") or row.get("query")
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"{place}: general_qa needs `question`, `query` or `messages`; the row has {', '.join(row)}")
    system = {"system": str(row["system"])} if row.get("system") else {}
    return {"question": question, "answer": answer} | system


def _mcq_row(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    letters = [letter for letter in LETTERS if row.get(letter) not in (None, "")]
    question, answer = row.get("question"), str(row.get("answer", "")).strip().upper()
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"{place}: general_mcq needs `question`; the row has {', '.join(row)}")
    if len(letters) < 2 or letters != list(LETTERS[: len(letters)]):
        raise DataError(
            f"{place}: general_mcq needs the choices A, B and so on without a gap; the row has {', '.join(row)}"
        )
    if answer not in letters:
        raise DataError(f"{place}: `answer` is {row.get('answer')!r}. Choose from: {', '.join(letters)}")
    return {"question": question, **{letter: str(row[letter]) for letter in letters}, "answer": answer}


def _is_chinese(text: str) -> bool:
    return any("\u4e00" <= letter <= "\u9fff" for letter in text)

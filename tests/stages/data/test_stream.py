from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stages.arguments import PreprocessArguments
from stages.artifacts.store import LocalStore
from stages.data.stream import RowStream
from stages.errors import ArgumentsError, DataError
from stages.preprocess import STAGE
from stages.run import StageResult, run_stage


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def rows(count: int, name: str = "q") -> list[dict[str, Any]]:
    return [{"query": f"{name}{number}", "response": f"r{number}"} for number in range(count)]


def run(store: LocalStore, **arguments: Any) -> StageResult:
    return run_stage(STAGE, PreprocessArguments(streaming=True, **arguments), {}, store=store)


def stream(store: LocalStore, result: StageResult, folder: Path) -> RowStream:
    store.copy_out(result.artifact, folder)
    return RowStream.open(folder)


def questions(stream: RowStream, start: int = 0, epoch: int = 0) -> list[tuple[int, str]]:
    return [(position, row["messages"][0]["content"]) for position, row in stream.rows(start, epoch)]


def test_every_row_comes_once_shuffled_inside_its_window(store: LocalStore, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", rows(2500))
    result = run(store, dataset=[str(path)])
    assert result.metrics == {"validation_rows": 0, "raw_rows": 2500}
    found = questions(stream(store, result, tmp_path / "out"))
    assert [position for position, _ in found] == list(range(1, 2501))
    for window in range(3):
        names = [name for _, name in found[window * 1000 : window * 1000 + 1000]]
        expected = [f"q{number}" for number in range(window * 1000, min(window * 1000 + 1000, 2500))]
        assert sorted(names) == sorted(expected)
        assert names != expected


def test_seed_and_epoch_decide_the_order(store: LocalStore, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", rows(30))
    first = stream(store, run(store, dataset=[str(path)]), tmp_path / "a")
    other = stream(store, run(store, dataset=[str(path)], data_seed=1), tmp_path / "b")
    assert questions(first) == questions(first)
    assert questions(first)[:3] == [(1, "q15"), (2, "q7"), (3, "q9")]
    assert len({str(questions(first)), str(questions(first, epoch=1)), str(questions(other))}) == 3


@pytest.mark.parametrize("start", [1, 7, 999, 1000, 1001, 2048, 3100, 3599, 3600])
def test_it_goes_on_exactly_behind_a_row(store: LocalStore, tmp_path: Path, start: int) -> None:
    """Over the borders of files, datasets, windows and samples, with draws among answers and bad rows between."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    many = [{"query": f"a{n}", "response": [f"x{n}", f"y{n}", f"z{n}"]} if n % 9 else "{broken" for n in range(1500)]
    first = write(tmp_path / "folder" / "one.jsonl", many)
    (tmp_path / "folder" / "two.csv").write_text("query,response\n" + "".join(f'"b\n{n}",r\n' for n in range(900)))
    pq.write_table(pa.Table.from_pylist(rows(1100, "c")), tmp_path / "three.parquet", row_group_size=170)
    last = write(tmp_path / "four.txt", [f"text {number}" for number in range(1000)])
    assert first.exists()
    datasets = [str(tmp_path / "folder"), f"{tmp_path / 'three.parquet'}#900", f"{last}#300"]
    opened = stream(store, run(store, dataset=datasets), tmp_path / "out")
    whole = list(opened.rows(epoch=2))
    assert whole[-1][0] == 3600
    assert list(opened.rows(start, epoch=2)) == [one for one in whole if one[0] > start]


def test_the_head_is_held_out(store: LocalStore, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    one = write(tmp_path / "one.jsonl", rows(100, "a"))
    other = write(tmp_path / "other.jsonl", rows(100, "b"))
    result = run(store, dataset=[f"{one}#50", f"{other}#20"], split_dataset_ratio=0.1)
    assert result.metrics == {"validation_rows": 7, "raw_rows": 63, "rows_read": 7, "rows_dropped": 0}
    found = {name for _, name in questions(stream(store, result, tmp_path / "out"))}
    assert found == {f"a{n}" for n in range(5, 50)} | {f"b{n}" for n in range(2, 20)}
    held_out = pq.read_table(tmp_path / "out" / "validation.parquet")["messages"].to_pylist()
    assert [messages[0]["content"] for messages in held_out] == ["a0", "a1", "a2", "a3", "a4", "b0", "b1"]


def test_a_validation_dataset_is_read_at_once(store: LocalStore, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    train = write(tmp_path / "train.jsonl", rows(5))
    validation = write(tmp_path / "validation.jsonl", rows(3, "v"))
    result = run(store, dataset=[str(train)], val_dataset=[str(validation)])
    assert result.metrics["validation_rows"] == 3
    assert len(questions(stream(store, result, tmp_path / "out"))) == 5
    assert pq.read_metadata(tmp_path / "out" / "validation.parquet").num_rows == 3


def test_the_artifact_holds_all_that_a_worker_needs(store: LocalStore, tmp_path: Path) -> None:
    path = write(tmp_path / "here" / "rows.jsonl", rows(5))
    result = run(store, dataset=[str(path)])
    path.unlink()
    files = [file.path for file in store.tree(result.artifact).files]
    assert files == ["files/0/rows.jsonl", "stream.json"]
    opened = stream(store, result, tmp_path / "out")
    assert str(tmp_path) not in (tmp_path / "out" / "stream.json").read_text()
    assert len(questions(opened)) == 5


def test_bad_rows_are_counted_and_the_first_ten_named(
    store: LocalStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "rows.jsonl", [*rows(3), *["{broken"] * 12])
    opened = stream(store, run(store, dataset=[str(path)]), tmp_path / "out")
    with caplog.at_level(logging.WARNING):
        assert Counter(name for _, name in questions(opened)) == Counter(["q0", "q1", "q2"])
    assert opened.num_dropped == 12
    named = [record.getMessage() for record in caplog.records if "dropped" in record.getMessage()]
    assert len(named) == 10
    assert all(line.startswith("dropped rows.jsonl row ") and "not JSON" in line for line in named)


def test_strict_stops_at_a_bad_row(store: LocalStore, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [*rows(3), "{broken"])
    opened = stream(store, run(store, dataset=[str(path)], strict=True), tmp_path / "out")
    with pytest.raises(DataError, match=r"rows\.jsonl row 4: not JSON"):
        questions(opened)


def test_a_pass_without_any_row_is_an_error(store: LocalStore, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"query": "q"}] * 3)
    opened = stream(store, run(store, dataset=[str(path)]), tmp_path / "out")
    with pytest.raises(DataError, match=r"no row can be used. rows\.jsonl row \d: no response"):
        questions(opened)


def test_columns_names_and_plugins_work_in_a_stream(store: LocalStore, tmp_path: Path) -> None:
    write(tmp_path / "faq.jsonl", [{"frage": "wer?", "antwort": "{{NAME}} of {{AUTHOR}}", "tag": "en"}])
    write(tmp_path / "shout.jsonl", [{"q": "hi", "a": "there"}, {"q": "", "a": "nothing"}])
    info = tmp_path / "info.json"
    info.write_text(json.dumps([{"dataset_path": "faq.jsonl", "columns": {"frage": "query", "antwort": "response"}}]))
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "from stages.data.plugins import DatasetMeta, register_dataset\n"
        "def shout(row):\n"
        "    return {'query': row['q'].upper(), 'response': row['a']} if row['q'] else None\n"
        "register_dataset(DatasetMeta(dataset_name='shouted', dataset_path='shout.jsonl', preprocess_func=shout))\n"
    )
    result = run(
        store,
        dataset=["faq", "shouted"],
        custom_dataset_info=[str(info)],
        custom_register_path=[str(plugin)],
        model_name=["燕", "Martlet"],
        model_author=["她", "Swift"],
    )
    opened = stream(store, result, tmp_path / "out")
    found = sorted([one["content"] for one in row["messages"]] for _, row in opened.rows())
    assert found == [["HI", "there"], ["wer?", "Martlet of Swift"]]
    assert str(tmp_path) not in (tmp_path / "out" / "stream.json").read_text()


@pytest.mark.parametrize(
    ("content", "suffix", "arguments", "error", "message"),
    [
        (rows(10), "#50", {"split_dataset_ratio": 0.5}, DataError, "has 10 rows: none is left to train on when 25 are"),
        (rows(10), "", {"split_dataset_ratio": 0.5}, ArgumentsError, r"can split only what has an end: write .*#10000"),
        ([""], "", {}, DataError, r"rows\.jsonl has no rows"),
    ],
)
def test_what_cannot_be_streamed_is_one_clear_line(
    store: LocalStore,
    tmp_path: Path,
    content: list[Any],
    suffix: str,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    path = write(tmp_path / "rows.jsonl", content)
    with pytest.raises(error, match=message) as caught:
        run(store, dataset=[f"{path}{suffix}"], **arguments)
    assert "\n" not in str(caught.value)


def test_a_json_text_too_large_to_stream_is_refused(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(b"[" + b" " * 64_000_000 + b'{"query": "q", "response": "r"}]')
    with pytest.raises(
        DataError, match=r"rows\.json is one JSON text of 64 MB, which cannot be streamed: write a row a"
    ):
        run(store, dataset=[str(tmp_path / "rows.json")])


MEASURE = """
import resource, sys
from pathlib import Path
from stages.data.stream import RowStream
stream = RowStream.open(Path(sys.argv[1]))
rows = stream.rows(int(sys.argv[2]))
for _ in range(1000): next(rows)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = sum(1 for _ in rows)
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_is_that_of_a_window_whatever_the_size(store: LocalStore, tmp_path: Path) -> None:
    grown = {}
    for count in (20_000, 200_000):
        path = tmp_path / f"{count}.jsonl"
        answer = "word " * 190
        with path.open("w") as file:
            file.writelines(json.dumps({"query": f"q{n}", "response": answer}) + "\n" for n in range(count))
        out = tmp_path / f"out-{count}"
        store.copy_out(run(store, dataset=[str(path)]).artifact, out)
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(out), "0"], capture_output=True, text=True, check=True
        )
        read, kilobytes = map(int, done.stdout.split())
        assert read == count - 1000
        grown[count] = kilobytes
    assert (tmp_path / "200000.jsonl").stat().st_size > 190e6
    assert grown[200_000] < grown[20_000] + 8_000, grown

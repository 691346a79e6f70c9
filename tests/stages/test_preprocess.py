from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stages.arguments import PreprocessArguments
from stages.artifacts.store import LocalStore
from stages.errors import DataError
from stages.preprocess import STAGE, prepare
from stages.run import StageResult, run_stage


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def rows(count: int, name: str = "q") -> list[dict[str, str]]:
    return [{"query": f"{name}{number}", "response": f"r{number}"} for number in range(count)]


def run(store: LocalStore, **arguments: Any) -> StageResult:
    return run_stage(STAGE, PreprocessArguments(**arguments), {}, store=store)


def questions(store: LocalStore, result: StageResult, folder: Path, split: str = "train") -> list[str]:
    store.copy_out(result.artifact, folder)
    return [row[0]["content"] for row in pq.read_table(folder / f"{split}.parquet")["messages"].to_pylist()]


def test_rows_are_drawn_and_held_out(store: LocalStore, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", rows(100))
    result = run(store, dataset=[f"{path}#50"], split_dataset_ratio=0.1)
    assert result.metrics == {"train_rows": 45, "validation_rows": 5, "rows_read": 100, "rows_dropped": 0}
    train, validation = questions(store, result, tmp_path / "a"), questions(store, result, tmp_path / "b", "validation")
    assert not set(train) & set(validation)
    again = run_stage(
        STAGE,
        PreprocessArguments(dataset=[f"{path}#50"], split_dataset_ratio=0.1),
        {},
        store=LocalStore(tmp_path / "other"),
    )
    assert again.artifact == result.artifact


def test_sampling_is_swifts(store: LocalStore, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", rows(5))
    result = run(store, dataset=[f"{path}#3"], split_dataset_ratio=0)
    assert questions(store, result, tmp_path / "out") == ["q1", "q4", "q2"]


def test_the_key_holds_the_content_and_not_the_path(store: LocalStore, tmp_path: Path) -> None:
    one = write_rows(tmp_path / "one" / "rows.jsonl", rows(5))
    other = write_rows(tmp_path / "other" / "rows.jsonl", rows(5))
    first = run(store, dataset=[str(one)])
    assert run(store, dataset=[str(other)]).status == "cached"
    write_rows(one, rows(6))
    assert run(store, dataset=[str(one)]).key != first.key


def test_several_datasets_follow_each_other_in_the_order_given(store: LocalStore, tmp_path: Path) -> None:
    first = write_rows(tmp_path / "first.jsonl", rows(3, "a"))
    write_rows(tmp_path / "second" / "x.jsonl", rows(1, "b"))
    write_rows(tmp_path / "second" / "y.jsonl", rows(1, "c"))
    result = run(store, dataset=[str(tmp_path / "second"), f"{first}#2"], split_dataset_ratio=0)
    assert questions(store, result, tmp_path / "out") == ["b0", "c0", "a0", "a1"]


def test_a_validation_dataset_is_taken_whole(store: LocalStore, tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", rows(4))
    validation = write_rows(tmp_path / "validation.jsonl", rows(3, "v"))
    result = run(store, dataset=[str(train)], val_dataset=[str(validation)])
    assert questions(store, result, tmp_path / "out") == ["q0", "q1", "q2", "q3"]
    assert questions(store, result, tmp_path / "out2", "validation") == ["v0", "v1", "v2"]


def test_rows_may_be_handed_in_without_an_argument(store: LocalStore, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", rows(4))
    result = run_stage(STAGE, PreprocessArguments(split_dataset_ratio=0), {"dataset": path}, store=store)
    assert result.metrics["train_rows"] == 4


def test_malformed_rows_are_dropped_counted_and_named(store: LocalStore, tmp_path: Path) -> None:
    bad = ["{broken", {"query": "q"}, {"query": "q", "response": ""}]
    path = write_rows(tmp_path / "rows.jsonl", [*rows(3), *bad])
    result = run(store, dataset=[str(path)], split_dataset_ratio=0)
    assert (result.metrics["train_rows"], result.metrics["rows_dropped"]) == (3, 3)
    assert result.attachments is not None
    store.copy_out(result.attachments, tmp_path / "attachments")
    dropped = [json.loads(line) for line in (tmp_path / "attachments" / "dropped.jsonl").read_text().splitlines()]
    assert [(one["file"], one["row"]) for one in dropped] == [("rows.jsonl", 4), ("rows.jsonl", 5), ("rows.jsonl", 6)]
    assert result.metrics["first_dropped"].splitlines()[2] == "rows.jsonl row 6: message 2, an answer, is empty"


def test_only_the_first_ten_dropped_rows_are_named(store: LocalStore, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [*rows(3), *[{"query": "q"}] * 40])
    result = run(store, dataset=[str(path)], split_dataset_ratio=0)
    assert len(result.metrics["first_dropped"].splitlines()) == 10
    assert result.metrics["rows_dropped"] == 40


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ([*rows(6), "{broken"], {"strict": True}, r"rows\.jsonl row 7: not JSON"),
        ([{"query": "q"}] * 3, {}, r"rows\.jsonl has no row that can be used. rows\.jsonl row 1: no response"),
        (
            [{"question": "q", "output": "r", "text": "s"}] * 3,
            {},
            "columns 'output', 'text' all mean response: rename or drop all but one",
        ),
        (rows(1), {}, r"rows\.jsonl gives 1 row\(s\): none is left to train on"),
        (rows(3), {"split_dataset_ratio": 1}, "no row is left to train on"),
    ],
)
def test_a_dataset_that_is_no_use_is_one_clear_line(
    store: LocalStore, tmp_path: Path, content: list[Any], arguments: dict[str, Any], message: str
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", content)
    with pytest.raises(DataError, match=message) as caught:
        run(store, dataset=[str(path)], **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("./nowhere.jsonl", "'./nowhere.jsonl' does not exist"),
        ("rows.xlsx", "not of a known format"),
        ("rows.jsonl#0", "above 0"),
    ],
)
def test_a_wrong_path_is_told_before_anything_is_read(in_tmp_path: Path, dataset: str, message: str) -> None:
    (in_tmp_path / "rows.xlsx").write_text("?")
    with pytest.raises(DataError, match=message):
        prepare(PreprocessArguments(dataset=[dataset]))


def test_preparing_twice_changes_nothing(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", rows(3))
    once = prepare(PreprocessArguments(dataset=[f"{path}#2", "pypi::llamafactory==0.9.5:data/identity.json"]))
    assert once.arguments.dataset == ["local::0#2", "pypi::llamafactory==0.9.5:data/identity.json"]
    assert once.inputs == {"dataset": path}
    assert prepare(once.arguments).arguments == once.arguments


def test_memory_does_not_grow_with_the_rows(store: LocalStore, tmp_path: Path) -> None:
    """Rows pass through in batches: the peak of Python's own memory is that of a few batches, not of the file."""
    import tracemalloc

    path = tmp_path / "rows.jsonl"
    answer = "word " * 200
    with path.open("w") as file:
        for number in range(20_000):
            file.write(json.dumps({"query": f"q{number}", "response": answer}) + "\n")
    tracemalloc.start()
    run(store, dataset=[f"{path}#10000"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 20e6
    assert peak < 12e6


@pytest.mark.slow
def test_rows_come_out_of_a_package(store: LocalStore, tmp_path: Path) -> None:
    name = "pypi::llamafactory==0.9.5:data/identity.json"
    result = run(store, dataset=[f"{name}#20"], split_dataset_ratio=0)
    assert result.metrics["train_rows"] == 20
    with pytest.raises(DataError, match=r"has no 'data/identitie\.json'. Did you mean one of: data/identity\.json"):
        run(store, dataset=["pypi::llamafactory==0.9.5:data/identitie.json"])

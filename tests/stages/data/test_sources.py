from __future__ import annotations

from pathlib import Path

import pytest

from stages.data.dataset_info import DatasetMeta, Registry, SubsetDataset
from stages.data.sources import Workplace, open_dataset
from stages.data.spec import DatasetSpec
from stages.errors import DataError
from stages.sources.location import Location


def fill(folder: Path, files: dict[str, int]) -> Path:
    for name, count in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(f'{{"text": "{name} {number}"}}\n' for number in range(count)))
    return folder


def place(folder: Path, count: int = 1, **others: object) -> Workplace:
    return Workplace(folder, count, folder / "scratch", **others)  # type: ignore[arg-type]


def test_rows_come_with_file_number_and_share(tmp_path: Path) -> None:
    fill(tmp_path, {"a/x.jsonl": 2, "b.jsonl": 3})
    found = list(open_dataset(DatasetSpec(Location("local", "0")), place(tmp_path)))
    assert [(label, len(batch.rows), batch.position) for label, batch in found] == [
        ("a/x.jsonl", 2, 0.5),
        ("b.jsonl", 3, 1.0),
    ]
    assert found[1][1].rows[2] == (3, {"text": "b.jsonl 2"})


def test_one_of_several_paths_is_taken_by_its_number(tmp_path: Path) -> None:
    fill(tmp_path, {"0/a.jsonl": 1, "1/en.jsonl": 1, "1/zh.jsonl": 1})
    spec = DatasetSpec(Location("local", "1"), subset="zh")
    assert [label for label, _ in open_dataset(spec, place(tmp_path, 2))] == ["zh.jsonl"]


def test_a_limit_counts_over_all_files(tmp_path: Path) -> None:
    fill(tmp_path, {"a.jsonl": 2, "b.jsonl": 3, "c.jsonl": 9})
    found = open_dataset(DatasetSpec(Location("local", "0")), place(tmp_path, limit=4))
    assert [(label, len(batch.rows)) for label, batch in found] == [("a.jsonl", 2), ("b.jsonl", 2)]


def test_media_start_here_then_where_the_file_lies(tmp_path: Path) -> None:
    fill(tmp_path / "in", {"a/x.jsonl": 1, "b.jsonl": 1})
    own = fill(tmp_path / "own", {"a/x.jsonl": 1, "b.jsonl": 1})
    found = open_dataset(DatasetSpec(Location("local", "0")), place(tmp_path / "in", folders=[own]))
    places = [(batch.reading.here, batch.reading.folder) for _, batch in found]
    assert places == [(tmp_path / "in" / "a", own / "a"), (tmp_path / "in", own)]


def test_each_subset_is_read_as_it_was_registered(tmp_path: Path) -> None:
    fill(tmp_path, {"en/x.jsonl": 1, "zh/train.jsonl": 1, "zh/test.jsonl": 1})
    subsets = [SubsetDataset("en", columns={"text": "query"}), SubsetDataset("zh", split=("test", "train"))]
    entry = DatasetMeta(dataset_path="local::dataset/0", subsets=subsets, columns={"text": "response"})
    spec = DatasetSpec(Location("local", "0"), subset="all")
    found = open_dataset(spec, place(tmp_path, registry=Registry([entry])))
    assert [(label, batch.reading.columns["text"]) for label, batch in found] == [
        ("en/x.jsonl", "query"),
        ("zh/test.jsonl", "response"),
        ("zh/train.jsonl", "response"),
    ]


def test_rows_that_are_not_there_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="local::0 is no longer there: hand the rows in as the input `val_dataset`"):
        list(open_dataset(DatasetSpec(Location("local", "0")), Workplace(None, 0, tmp_path, argument="val_dataset")))

from __future__ import annotations

from pathlib import Path

import pytest

from stages.data.files import data_files
from stages.errors import DataError


def fill(folder: Path, names: str) -> Path:
    for name in names.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def named(folder: Path, subset: str | None = None, split: str = "train") -> str:
    return " ".join(file.relative_to(folder).as_posix() for file in data_files(folder, subset, split))


@pytest.mark.parametrize(
    ("files", "subset", "split", "expected"),
    [
        ("b.jsonl a/x.csv .hidden/y.jsonl README.md a/.z.json", None, "train", "a/x.csv b.jsonl"),
        (
            "x.jsonl dataset_info.json dataset_infos.json a/state.json a/data-0.arrow",
            None,
            "train",
            "a/data-0.arrow x.jsonl",
        ),
        ("train.jsonl test.jsonl validation.jsonl", None, "train", "train.jsonl"),
        ("train.jsonl test.jsonl validation.jsonl", None, "test", "test.jsonl"),
        ("train.jsonl test.jsonl validation.jsonl", None, "all", "test.jsonl train.jsonl validation.jsonl"),
        ("my-train-00001.json my_train_2.json my-dev.json", None, "train", "my-train-00001.json my_train_2.json"),
        ("training/a.csv training/b.csv eval/a.csv", None, "train", "training/a.csv training/b.csv"),
        ("training/a.csv eval/train.csv", None, "validation", ""),
        ("trainer.csv contest.csv", None, "train", "contest.csv trainer.csv"),
        ("test.jsonl", None, "train", "test.jsonl"),
        ("en/a.jsonl en/b.jsonl zh/a.jsonl", "en", "train", "en/a.jsonl en/b.jsonl"),
        ("en/a.jsonl en/b.jsonl zh/a.jsonl", "zh/en", "train", "zh/a.jsonl en/a.jsonl en/b.jsonl"),
        ("en/a.jsonl zh/a.jsonl", "all", "train", "en/a.jsonl zh/a.jsonl"),
        ("en.jsonl.gz en.csv zh.txt", "en", "train", "en.csv en.jsonl.gz"),
        ("en/train.jsonl en/test.jsonl zh/train.jsonl", "en", "train", "en/train.jsonl"),
        ("en/train.jsonl en/test.jsonl zh/a.jsonl", "zh/en", "train", "zh/a.jsonl en/train.jsonl"),
        ("v1.5/a.jsonl v1.jsonl", "v1.5", "train", "v1.5/a.jsonl"),
    ],
)
def test_the_files_of_a_subset_and_a_split(
    tmp_path: Path, files: str, subset: str | None, split: str, expected: str
) -> None:
    fill(tmp_path, files)
    if not expected:
        with pytest.raises(DataError, match=r"has no split 'validation'|only"):
            named(tmp_path, subset, split)
        return
    assert named(tmp_path, subset, split) == expected


CARD = """---
license: mit
configs:
- config_name: en
  data_files: "english/*.jsonl"
- config_name: zh
  data_files:
  - split: train
    path: ["chinese/one.jsonl", "chinese/two.jsonl"]
  - split: held_out
    path: chinese/three.jsonl
---
# Rows
"""


@pytest.mark.parametrize(
    ("subset", "split", "expected"),
    [
        ("en", "train", "english/a.jsonl english/b.jsonl"),
        ("zh", "train", "chinese/one.jsonl chinese/two.jsonl"),
        ("zh", "held_out", "chinese/three.jsonl"),
        ("all", "train", "english/a.jsonl english/b.jsonl chinese/one.jsonl chinese/two.jsonl"),
    ],
)
def test_a_readme_says_which_files_are_which(tmp_path: Path, subset: str, split: str, expected: str) -> None:
    fill(tmp_path, "english/a.jsonl english/b.jsonl chinese/one.jsonl chinese/two.jsonl chinese/three.jsonl")
    (tmp_path / "README.md").write_text(CARD)
    assert named(tmp_path, subset, split) == expected


@pytest.mark.parametrize(
    ("files", "card", "subset", "split", "message"),
    [
        ("a.xlsx", "", None, "train", r"holds no data file. Known formats: \.jsonl, \.json, \.csv, \.tsv, \.parquet"),
        ("en/a.jsonl zh/a.jsonl", "", "en/zz", "train", r"has no subset 'zz'. It has: en, zh"),
        ("en/a.jsonl zh/a.jsonl", "", "eng", "train", r"has no subset 'eng'. Did you mean 'en'\? It has: en, zh"),
        ("test.jsonl dev.jsonl", "", None, "train", "has no split 'train', only validation, test: name the file"),
        ("a.jsonl b.jsonl", "", None, "test", "has no split 'test': no folder or file in it is named so"),
        ("english/a.jsonl b.jsonl", CARD, None, "train", r"has the subsets en, zh: name those to read, as .*:en"),
        (
            "english/a.jsonl b.jsonl",
            CARD,
            "zh",
            "train",
            "holds no data file that matches chinese/one.jsonl chinese/two",
        ),
        ("english/a.jsonl b.jsonl", CARD, "en", "dev", "has no split 'dev', only train"),
        ("a.jsonl b.jsonl", "---\nconfigs: [1]\n---\n", None, "train", r"README\.md declares `configs` that cannot be"),
        ("a.jsonl b.jsonl", "---\nconfigs: [\n---\n", None, "train", r"README\.md declares `configs` that cannot be"),
    ],
)
def test_a_folder_that_is_no_use_is_one_clear_line(
    tmp_path: Path, files: str, card: str, subset: str | None, split: str, message: str
) -> None:
    fill(tmp_path, files)
    if card:
        (tmp_path / "README.md").write_text(card)
    with pytest.raises(DataError, match=message) as caught:
        named(tmp_path, subset, split)
    assert "\n" not in str(caught.value)


def test_a_file_has_neither_subsets_nor_an_unknown_format(tmp_path: Path) -> None:
    fill(tmp_path, "a.xlsx a.jsonl")
    with pytest.raises(DataError, match=r"a\.xlsx is not of a known format. Choose from: \.jsonl"):
        data_files(tmp_path / "a.xlsx")
    with pytest.raises(DataError, match=r"a\.jsonl is a file, which has no subsets: drop ':en'"):
        data_files(tmp_path / "a.jsonl", "en")


def test_links_are_followed_once(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", "en/a.jsonl b.jsonl")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "folder")
    assert named(tmp_path / "folder") == "linked/b.jsonl linked/en/a.jsonl"


def test_it_finds_the_splits_that_the_datasets_library_finds(tmp_path: Path) -> None:
    from datasets.data_files import get_data_patterns, resolve_pattern

    layouts = [
        "train.jsonl test.jsonl",
        "data/train.csv data/test.csv",
        "train_0.csv train_1.csv test_0.csv",
        "data/train/a.csv data/train/b.csv data/test/a.csv",
        "a.csv b/c.csv",
        "my.train.csv eval.csv",
    ]
    for number, files in enumerate(layouts):
        folder = fill(tmp_path / f"n{number}", files)
        theirs = get_data_patterns(str(folder))["train"]
        found = {file for pattern in theirs for file in _resolved(resolve_pattern, pattern, folder)}
        assert {str(file) for file in data_files(folder)} == found, files


def _resolved(resolve: object, pattern: str, folder: Path) -> list[str]:
    try:
        return list(resolve(pattern, str(folder)))  # type: ignore[operator]
    except FileNotFoundError:
        return []

from __future__ import annotations

from pathlib import Path

import pytest

from stages.data.spec import DatasetSpec, parse_dataset
from stages.errors import DataError
from stages.sources.location import Location


@pytest.mark.parametrize(
    ("text", "use_hf", "expected"),
    [
        ("owner/name", False, DatasetSpec(Location("ms", "owner/name"))),
        ("owner/name", True, DatasetSpec(Location("hf", "owner/name"))),
        ("hf::owner/name", False, DatasetSpec(Location("hf", "owner/name"))),
        ("HF::owner/name:en/zh#500", False, DatasetSpec(Location("hf", "owner/name"), None, "en/zh", 500)),
        ("ms::owner/name@v1:default", True, DatasetSpec(Location("ms", "owner/name"), "v1", "default")),
        (
            "pypi::llamafactory==0.9.5:data/identity.json#20",
            False,
            DatasetSpec(Location("pypi", "llamafactory==0.9.5"), None, "data/identity.json", 20),
        ),
        ("Ms::owner/name:all", True, DatasetSpec(Location("ms", "owner/name"), None, "all")),
        ("owner/name: en / zh ", True, DatasetSpec(Location("hf", "owner/name"), None, "en/zh")),
        ("local::1:en#3", False, DatasetSpec(Location("local", "1"), None, "en", 3)),
        ("local::1#3", False, DatasetSpec(Location("local", "1"), sample=3)),
    ],
)
def test_a_dataset_is_read_in_all_its_parts(text: str, use_hf: bool, expected: DatasetSpec) -> None:
    spec = parse_dataset(text, use_hf=use_hf)
    assert spec == expected
    assert parse_dataset(str(spec), use_hf=False) == expected


@pytest.mark.parametrize(
    ("name", "suffix", "sample"),
    [("rows.jsonl", "", None), ("rows.jsonl", "#7", 7), ("a:b#12.jsonl", "", None), ("a:b#12.jsonl", "#3", 3)],
)
def test_a_path_that_exists_wins_over_the_syntax(tmp_path: Path, name: str, suffix: str, sample: int | None) -> None:
    path = tmp_path / name
    path.write_text("{}")
    assert parse_dataset(f"{path}{suffix}", use_hf=False) == DatasetSpec(Location("path", str(path)), sample=sample)


@pytest.mark.parametrize(
    ("text", "name", "subset", "sample"),
    [
        ("folder:en", "folder", "en", None),
        ("folder:en/zh#20", "folder", "en/zh", 20),
        ("a:b#1:en#2", "a:b#1", "en", 2),
        ("./folder:all", "./folder", "all", None),
    ],
)
def test_a_folder_may_have_subsets(in_tmp_path: Path, text: str, name: str, subset: str, sample: int | None) -> None:
    for folder in ("folder", "a:b#1"):
        (in_tmp_path / folder).mkdir()
    assert parse_dataset(text, use_hf=False) == DatasetSpec(Location("path", name), None, subset, sample)


def test_use_hf_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_HF", "1")
    assert parse_dataset("owner/name", use_hf=False).location.hub == "hf"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows.jsonl#0", "after # stands how many rows"),
        ("rows.jsonl#-5", "not '-5'"),
        ("rows.jsonl#many", "not 'many'"),
        ("rows.jsonl#", "not ''"),
        ("rows.jsonl#1.5", "not '1.5'"),
        ("rows.jsonl#²", "not '²'"),
        ("owner/name:", "after : stand the names of subsets, separated by /, not ''"),
        ("owner/name:en//zh", "after : stand the names of subsets, separated by /, not 'en//zh'"),
        ("./nowhere.jsonl#5", "'./nowhere.jsonl' does not exist"),
        ("name", "OWNER/NAME"),
        ("owner/name/more", "neither an existing path nor a hub id"),
        ("github::owner/name", "unknown prefix"),
        ("pypi::llamafactory", "no exact version"),
        ("pypi::llamafactory==0.9.5", "names no file"),
    ],
)
def test_a_wrong_dataset_is_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        parse_dataset(text, use_hf=False)
    assert "\n" not in str(caught.value)


def test_a_subset_of_a_local_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(DataError, match="no subsets"):
        parse_dataset(f"{tmp_path / 'rows.jsonl'}:en", use_hf=False)


def test_the_closest_name_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "alpaca.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"Did you mean '.*alpaca\.jsonl'\?"):
        parse_dataset(str(tmp_path / "alpcaa.jsonl"), use_hf=False)

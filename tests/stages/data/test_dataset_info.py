from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.data.dataset_info import DatasetMeta, Registry, SubsetDataset, read_dataset_info
from stages.data.spec import DatasetSpec, parse_dataset
from stages.errors import ArgumentsError, DataError
from stages.sources.location import Location


def test_swifts_fields_are_read() -> None:
    entries = [
        {
            "ms_dataset_id": "swift/sharegpt",
            "hf_dataset_id": "shibing624/sharegpt",
            "subsets": ["zh", {"name": "en", "subset": "en_v2", "split": ["train", "test"], "columns": {"q": "query"}}],
            "split": "validation",
            "messages": {"role_key": "from", "user_role": "me"},
            "tags": ["chat", "🔥"],
            "help": "many",
            "huge_dataset": True,
        }
    ]
    assert read_dataset_info(json.dumps(entries)) == [
        DatasetMeta(
            ms_dataset_id="swift/sharegpt",
            hf_dataset_id="shibing624/sharegpt",
            subsets=(SubsetDataset("zh"), SubsetDataset("en_v2", "en", ("train", "test"), {"q": "query"})),
            split=("validation",),
            messages={"role_key": "from", "user_role": "me"},
            tags=("chat", "🔥"),
            help="many",
            huge_dataset=True,
        )
    ]


def test_a_relative_path_starts_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "info.json").write_text('[{"dataset_path": "rows/faq.jsonl"}]')
    assert read_dataset_info(str(tmp_path / "info.json"))[0].dataset_path == str(tmp_path / "rows" / "faq.jsonl")
    assert read_dataset_info('[{"dataset_path": "rows/faq.jsonl"}]')[0].dataset_path == "rows/faq.jsonl"


def test_names_may_stand_before_the_entries() -> None:
    (entry,) = read_dataset_info('{"faq": {"hf_dataset_id": "owner/questions"}}')
    assert (entry.dataset_name, entry.hf_dataset_id) == ("faq", "owner/questions")


BOTH = DatasetMeta(ms_dataset_id="ms-owner/alpaca", hf_dataset_id="hf-owner/alpaca-x", hf_revision="v2")


@pytest.mark.parametrize(
    ("text", "use_hf", "expected"),
    [
        ("ms-owner/alpaca", False, DatasetSpec(Location("ms", "ms-owner/alpaca"))),
        ("ms-owner/alpaca#5", True, DatasetSpec(Location("hf", "hf-owner/alpaca-x"), "v2", None, 5)),
        ("alpaca", False, DatasetSpec(Location("ms", "ms-owner/alpaca"))),
        ("alpaca-x:en", False, DatasetSpec(Location("ms", "ms-owner/alpaca"), None, "en")),
        ("HF::alpaca@v1:en/zh#7", False, DatasetSpec(Location("hf", "hf-owner/alpaca-x"), "v1", "en/zh", 7)),
        ("named", True, DatasetSpec(Location("ms", "owner/only-there"))),
        ("other/dataset", True, DatasetSpec(Location("hf", "other/dataset"))),
    ],
)
def test_a_registered_name_means_that_dataset(text: str, use_hf: bool, expected: DatasetSpec) -> None:
    registry = Registry([BOTH, DatasetMeta(ms_dataset_id="owner/only-there", dataset_name="named")])
    assert parse_dataset(text, use_hf=use_hf, registry=registry) == expected


def test_a_registered_path_is_found_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "faq.jsonl"
    registry = Registry([DatasetMeta(dataset_path=str(path))])
    with pytest.raises(DataError, match=r"dataset 'faq' is registered at .*faq\.jsonl, which does not exist"):
        parse_dataset("faq", use_hf=False, registry=registry)
    path.write_text("{}")
    assert parse_dataset("faq#3", use_hf=False, registry=registry) == DatasetSpec(Location("path", str(path)), sample=3)


SUBSETS = (
    SubsetDataset("default"),
    SubsetDataset("en_v2", "en", ("train", "test"), {"q": "query"}),
    SubsetDataset("old", is_weak_subset=True),
)


@pytest.mark.parametrize(
    ("subsets", "asked", "expected"),
    [
        (SUBSETS, None, [(None, "train", {"c": "response"})]),
        (SUBSETS[1:2], None, [("en_v2", "train", {"q": "query"}), ("en_v2", "test", {"q": "query"})]),
        (SUBSETS, "old", [("old", "train", {"c": "response"})]),
        (SUBSETS, "default/old", [(None, "train", {"c": "response"}), ("old", "train", {"c": "response"})]),
        (
            SUBSETS,
            "all",
            [(None, "train", {"c": "response"}), ("en_v2", "train", {"q": "query"}), ("en_v2", "test", {"q": "query"})],
        ),
        ((), "any", [("any", "train", {"c": "response"})]),
        ((), None, [(None, "train", {"c": "response"})]),
    ],
)
def test_subsets_are_chosen_by_swifts_rule(subsets: Any, asked: str | None, expected: list[Any]) -> None:
    entry = DatasetMeta(hf_dataset_id="owner/name", subsets=subsets, columns={"c": "response"})
    parts = Registry([entry]).parts(DatasetSpec(Location("hf", "owner/name"), None, asked), "dataset")
    assert [(part.subset, part.split, part.reading.columns) for part in parts] == expected


@pytest.mark.parametrize(
    ("subsets", "asked", "message"),
    [
        (SUBSETS[1:], None, "owner/name has the subsets en, old: name those to read after a colon"),
        (SUBSETS, "en_v2", r"owner/name has no subset 'en_v2'. It has: default, en, old"),
        (SUBSETS, "olt", r"owner/name has no subset 'olt'. Did you mean 'old'\? It has: default, en, old"),
    ],
)
def test_unknown_subsets_are_refused_with_those_there_are(subsets: Any, asked: str | None, message: str) -> None:
    registry = Registry([DatasetMeta(hf_dataset_id="owner/name", subsets=subsets)])
    with pytest.raises(DataError, match=message):
        registry.parts(DatasetSpec(Location("hf", "owner/name"), None, asked), "dataset")


@pytest.mark.parametrize("name", ["dataset_name", "ms_dataset_id", "hf_dataset_id", "dataset_path"])
def test_a_dataset_registered_twice_is_refused(name: str) -> None:
    entries = [DatasetMeta(**{"ms_dataset_id": f"owner/n{number}", name: "the/same"}) for number in (1, 2)]
    with pytest.raises(DataError, match="dataset 'the/same' is registered twice: drop one, or give it another name"):
        Registry(entries)


def test_a_short_name_of_two_datasets_is_refused() -> None:
    registry = Registry([DatasetMeta(hf_dataset_id="one/faq"), DatasetMeta(hf_dataset_id="other/faq")])
    with pytest.raises(DataError, match="'faq' may be one/faq or other/faq: write it in full"):
        parse_dataset("faq", use_hf=True, registry=registry)


def test_a_hub_that_does_not_have_it_is_refused() -> None:
    registry = Registry([DatasetMeta(hf_dataset_id="one/faq")])
    with pytest.raises(DataError, match="dataset 'faq' is registered without ms_dataset_id"):
        parse_dataset("ms::faq", use_hf=True, registry=registry)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere.json", "`--custom_dataset_info nowhere.json`: neither a file nor JSON"),
        ("[{]", "custom_dataset_info is not JSON: Expecting property name"),
        ("[1]", "entry 1 is 1, not an object"),
        (
            '[{"tags": []}]',
            "entry 1: dataset without a name: give one of ms_dataset_id, hf_dataset_id and dataset_path",
        ),
        ('[{"hf_dataset_id": "a/b", "colums": {}}]', "entry 1 has an unknown field 'colums'. Did you mean 'columns'"),
        ('[{"hf_dataset_id": 5}]', "entry 1: hf_dataset_id is 5, not a text"),
        ('[{"hf_dataset_id": "a/b", "columns": ["q"]}]', r"columns is \['q'\], not an object of texts"),
        ('[{"hf_dataset_id": "a/b", "messages": {"role": "from"}}]', "unknown field 'role'. Did you mean 'role_key'"),
        ('[{"hf_dataset_id": "a/b", "subsets": "en"}]', "subsets is 'en', not a list"),
        ('[{"hf_dataset_id": "a/b", "subsets": [{"nam": "en"}]}]', "subset 1 has an unknown field 'nam'"),
        ('[{"hf_dataset_id": "a/b", "split": [1]}]', r"split is \[1\], not a list of texts"),
        ('[{"hf_dataset_id": "a/b", "huge_dataset": "yes"}]', "huge_dataset is 'yes', not true or false"),
    ],
)
def test_a_malformed_info_is_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(ArgumentsError, match=message) as caught:
        read_dataset_info(text)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "info.json").write_text("{'a': 1}")
    with pytest.raises(ArgumentsError, match=r"`--custom_dataset_info`: info\.json is not JSON: Expecting property"):
        read_dataset_info(str(tmp_path / "info.json"))

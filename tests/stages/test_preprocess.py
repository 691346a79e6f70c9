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


def test_a_subset_of_a_folder_is_read(store: LocalStore, tmp_path: Path) -> None:
    for name in ("en/train.jsonl", "en/test.jsonl", "zh/train.jsonl", "fr.jsonl"):
        write_rows(tmp_path / "folder" / name, rows(2, f"{name} "))
    result = run(store, dataset=[f"{tmp_path / 'folder'}:zh/en", f"{tmp_path / 'folder'}:fr#1"], split_dataset_ratio=0)
    expected = ["zh/train.jsonl 0", "zh/train.jsonl 1", "en/train.jsonl 0", "en/train.jsonl 1"]
    assert questions(store, result, tmp_path / "out")[:4] == expected
    assert result.metrics["train_rows"] == 5


INFO = [
    {
        "dataset_path": "chats",
        "dataset_name": "talk",
        "subsets": ["one", {"name": "two", "subset": "second", "columns": {"frage": "query", "antwort": "response"}}],
        "columns": {"dialog": "messages"},
        "messages": {"role_key": "who", "content_key": "says", "user_role": "me", "assistant_role": "you"},
        "tags": ["chat"],
    },
    {"hf_dataset_id": "never/used"},
]


def register(folder: Path) -> Path:
    turns = [{"who": "me", "says": "hello"}, {"who": "you", "says": "hi"}]
    write_rows(folder / "chats" / "one.jsonl", [{"dialog": turns}])
    write_rows(folder / "chats" / "second" / "x.jsonl", [{"frage": "was?", "antwort": "das"}])
    (folder / "info.json").write_text(json.dumps(INFO))
    return folder / "info.json"


def test_registered_datasets_are_read_as_they_were_registered(store: LocalStore, tmp_path: Path) -> None:
    info = register(tmp_path / "here")
    result = run(store, dataset=["talk:all"], custom_dataset_info=[str(info)], split_dataset_ratio=0)
    store.copy_out(result.artifact, tmp_path / "out")
    assert pq.read_table(tmp_path / "out" / "train.parquet").to_pylist() == [
        {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]},
        {"messages": [{"role": "user", "content": "was?"}, {"role": "assistant", "content": "das"}]},
    ]
    with pytest.raises(DataError, match="talk has the subsets one, two: name those to read after a colon"):
        run(store, dataset=["talk"], custom_dataset_info=[str(info)])


def test_a_registration_is_in_the_key_by_what_it_says_and_by_no_path(store: LocalStore, tmp_path: Path) -> None:
    arguments = {"dataset": ["talk:two"], "split_dataset_ratio": 0}
    first = run(store, custom_dataset_info=[str(register(tmp_path / "here"))], **arguments)
    other = register(tmp_path / "there")
    other.write_text(json.dumps([*INFO[:1], {"hf_dataset_id": "another/one", "help": "not used"}]))
    again = run(store, custom_dataset_info=[str(other)], **arguments)
    assert (again.status, again.key) == ("cached", first.key)
    prepared = prepare(PreprocessArguments(custom_dataset_info=[str(other)], **arguments)).arguments
    assert str(tmp_path) not in json.dumps(prepared.key_fields())
    other.write_text(json.dumps([{**INFO[0], "subsets": ["second"], "columns": {"frage": "response"}}]))
    changed = prepare(PreprocessArguments(custom_dataset_info=[str(other)], dataset=["talk"], split_dataset_ratio=0))
    assert changed.arguments.custom_dataset_info != prepared.custom_dataset_info


PLUGIN = """
from stages.data.plugins import DatasetMeta, register_dataset

def turn(row):
    return None if row["left"] == "drop" else {"query": row["left"], "response": row["right"]}

register_dataset(DatasetMeta(dataset_name="unused", dataset_path="nowhere.jsonl"))
register_dataset(DatasetMeta(dataset_name="turned", dataset_path="turned.jsonl", preprocess_func=turn))
"""


def test_a_plugin_registers_a_dataset_and_reads_its_rows(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(PLUGIN)
    left = ["a", "drop", "b", 5]
    write_rows(tmp_path / "turned.jsonl", [{"left": one, "right": "r"} for one in left] + ["{broken", {"other": 1}])
    arguments = {"dataset": ["turned"], "custom_register_path": [str(tmp_path / "plugin.py")], "split_dataset_ratio": 0}
    result = run(store, **arguments)
    assert questions(store, result, tmp_path / "out") == ["a", "b", "5"]
    assert result.metrics["first_dropped"].splitlines() == [
        "turned.jsonl row 5: not JSON: unexpected character, expected a string key at column 2",
        "turned.jsonl row 6: the plugin's function fails: KeyError: 'left'",
    ]
    moved = tmp_path / "moved" / "own.py"
    moved.parent.mkdir()
    moved.write_text(PLUGIN)
    write_rows(
        moved.with_name("turned.jsonl"), [{"left": one, "right": "r"} for one in left] + ["{broken", {"other": 1}]
    )
    prepared = prepare(PreprocessArguments(**(arguments | {"custom_register_path": [str(moved)]})))
    assert set(prepared.inputs) == {"dataset", "plugins"}
    assert str(tmp_path) not in json.dumps(prepared.arguments.key_fields())
    assert prepare(prepared.arguments).arguments == prepared.arguments
    moved.write_text(PLUGIN.replace('"drop"', '"a"'))
    assert run(store, **(arguments | {"custom_register_path": [str(moved)]})).status == "ran"


def test_a_plugin_that_reads_no_rows_is_neither_an_input_nor_in_the_key(tmp_path: Path) -> None:
    """It may register a loss, which is edited often, or a dataset that is not asked for."""
    path = write_rows(tmp_path / "rows.jsonl", rows(5))
    (tmp_path / "plugin.py").write_text(PLUGIN)
    plain = prepare(PreprocessArguments(dataset=[str(path)]))
    prepared = prepare(PreprocessArguments(dataset=[str(path)], custom_register_path=[str(tmp_path / "plugin.py")]))
    assert set(prepared.inputs) == {"dataset"}
    assert prepared.arguments == plain.arguments


def test_a_dataset_of_a_plugin_and_of_an_info_is_registered_twice(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(PLUGIN)
    info = '[{"hf_dataset_id": "some/thing", "dataset_name": "turned"}]'
    with pytest.raises(DataError, match="dataset 'turned' is registered twice"):
        prepare(PreprocessArguments(custom_register_path=[str(tmp_path / "plugin.py")], custom_dataset_info=[info]))


def test_pictures_are_looked_for_beside_the_data_file(store: LocalStore, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "red.png")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "blue.png")
    path = write_rows(
        tmp_path / "rows.jsonl",
        [
            {"query": "<image>?", "response": "r", "images": ["red.png"]},
            {"query": "<image>!", "response": "r", "images": ["blue.png"]},
        ],
    )
    assert run(store, dataset=[str(path)], split_dataset_ratio=0).metrics["rows_dropped"] == 1
    given = run(store, dataset=[str(path)], split_dataset_ratio=0.0, media_dirs=[str(tmp_path / "pictures")])
    assert given.metrics["rows_dropped"] == 1, "the other one is there now"


def test_a_picture_that_changes_is_read_again(tmp_path: Path, store: LocalStore) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    path = write_rows(tmp_path / "rows.jsonl", [{"query": "<image>?", "response": "r", "images": ["a.png"]}])
    first = run(store, dataset=[str(path)], split_dataset_ratio=0)
    assert run(store, dataset=[str(path)], split_dataset_ratio=0).status == "cached"
    Image.new("RGB", (4, 5), "blue").save(tmp_path / "a.png")
    again = run(store, dataset=[str(path)], split_dataset_ratio=0)
    assert again.status == "ran"
    assert again.artifact != first.artifact
    text = write_rows(tmp_path / "text.jsonl", [{"query": "a.png?", "response": "r.jpg"}])
    run(store, dataset=[str(text)], split_dataset_ratio=0)
    assert run(store, dataset=[str(text)], split_dataset_ratio=0).status == "cached"


@pytest.mark.parametrize(
    ("dataset", "arguments", "message"),
    [
        ("rows.jsonl#50", {"val_dataset": ["rows.jsonl#11"]}, r"rows\.jsonl has 10 rows: 11 cannot be validated on"),
        ("rows.jsonl#1", {"split_dataset_ratio": 0.5}, r"rows\.jsonl gives 1 row\(s\): none is left to train on"),
        ("empty", {}, r"'empty' is neither an existing path nor|OWNER/NAME"),
        ("none.d", {}, "holds no data file"),
    ],
)
def test_numbers_that_do_not_fit_are_one_clear_line(
    store: LocalStore, in_tmp_path: Path, dataset: str, arguments: dict[str, Any], message: str
) -> None:
    write_rows(in_tmp_path / "rows.jsonl", rows(10))
    (in_tmp_path / "none.d").mkdir()
    with pytest.raises(DataError, match=message) as caught:
        run(store, dataset=[dataset], **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_rows_come_out_of_a_package(store: LocalStore, tmp_path: Path) -> None:
    name = "pypi::llamafactory==0.9.5:data/identity.json"
    result = run(store, dataset=[f"{name}#20"], split_dataset_ratio=0)
    assert result.metrics["train_rows"] == 20
    with pytest.raises(DataError, match=r"has no 'data/identitie\.json'. Did you mean one of: data/identity\.json"):
        run(store, dataset=["pypi::llamafactory==0.9.5:data/identitie.json"])

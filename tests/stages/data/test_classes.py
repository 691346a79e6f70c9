"""Rows that have a class become tokens and a label; what has none, or one that there is not, is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.arguments import TokenizeArguments
from stages.context import Context
from stages.data.show import tokens_row
from stages.data.tokenizer import load_tokenizer
from stages.errors import ArgumentsError, DataError
from stages.tokenize import tokenize

Row = dict[str, Any]


def asked(text: str, answer: str | None = None) -> list[dict[str, str]]:
    turns = [{"role": "user", "content": text}]
    return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]


def write_dataset(folder: Path, rows: list[Row], validation: list[Row] | None = None) -> Path:
    folder.mkdir(parents=True)
    for name, some in (("train", rows), ("validation", validation or [])):
        if some:
            pq.write_table(pa.Table.from_pylist(some), folder / f"{name}.parquet")
    return folder


def run(model: Path, dataset: Path, **arguments: Any) -> tuple[Path, dict[str, Any]]:
    out = dataset.parent / "out"
    for folder in (out, dataset.parent / "s", dataset.parent / "a"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    context = Context(dataset.parent / "s", dataset.parent / "a")
    given = TokenizeArguments(**{"num_labels": 3, **arguments})
    return out, tokenize(given, {"dataset": dataset, "model": model}, out, context)


ROWS: list[Row] = [
    {"messages": asked("what is red"), "label": 2},
    {"messages": [{"role": "system", "content": "answer"}, *asked("one", "two")], "label": 0},
    {"messages": asked("sky", "blue"), "label": None},
]
TEXTS = [
    "<|im_start|>user\nwhat is red<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>system\nanswer<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n",
]


def test_a_row_is_its_prompt_and_its_class(tiny_model: Path, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "d", ROWS, ROWS[:1])
    out, metrics = run(tiny_model, dataset)
    with pa.ipc.open_stream(pa.memory_map(str(out / "train.arrow"))) as reader:
        table = reader.read_all()
    assert table.column_names == ["input_ids", "length", "row", "label"]
    tokenizer = load_tokenizer(tiny_model).tokenizer
    read = [tokenizer.decode(ids, skip_special_tokens=False) for ids in table["input_ids"].to_pylist()]
    assert read == TEXTS
    assert table["label"].to_pylist() == [2, 0]
    assert table["row"].to_pylist() == [0, 1]
    assert metrics["train_dropped"] == 1
    assert metrics["train_first_dropped"] == "train.parquet row 3: it has no label, a number from 0 to 2"
    assert metrics["validation_rows"] == 1
    assert (tmp_path / "out" / "tokens.json").is_file()
    assert "".join(stretch.text for stretch in tokens_row(out, 1, tiny_model).stretches) == TEXTS[1]


def test_the_end_of_a_long_row_stays(tiny_model: Path, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "d", ROWS[:1])
    out, _ = run(tiny_model, dataset, max_length=4)
    with pa.ipc.open_stream(pa.memory_map(str(out / "train.arrow"))) as reader:
        ids = reader.read_all()["input_ids"].to_pylist()[0]
    whole = load_tokenizer(tiny_model).tokenizer.encode(TEXTS[0]).ids
    assert ids == whole[-4:]


WRONG = [
    ({}, [*ROWS, {"messages": asked("sea"), "label": 3}], "train.parquet row 4: its label is 3, and `--num_labels 3`"),
    ({"lazy_tokenize": True}, [*ROWS, {"messages": asked("sea"), "label": 9}], "train.parquet row 4: its label is 9"),
    ({}, [{"messages": asked("sea", "blue")}], "`--num_labels 3` needs rows with a label, and those of train.parquet"),
    ({"strict": True}, ROWS, "train.parquet row 3: it has no label, a number from 0 to 2"),
    ({}, ROWS[2:], "no row is left to train on"),
]


@pytest.mark.parametrize(("arguments", "rows", "message"), WRONG)
def test_wrong_labels_are_named(
    tiny_model: Path, tmp_path: Path, arguments: Row, rows: list[Row], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        run(tiny_model, write_dataset(tmp_path / "d", rows), **arguments)
    assert message in str(caught.value)


EXCLUDED = [
    ({"packing": True}, "`--packing` puts rows end to end"),
    ({"loss_scale": "last_round"}, "`--loss_scale last_round` weighs the tokens of answers"),
    ({"num_labels": 1}, "`--num_labels 1` would be a regression"),
]


@pytest.mark.parametrize(("arguments", "message"), EXCLUDED)
def test_what_a_classifier_cannot_have(arguments: Row, message: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        TokenizeArguments(**{"num_labels": 3, **arguments})
    assert str(caught.value).startswith(message)


def test_rows_that_are_encoded_later_keep_the_number_of_classes(tiny_model: Path, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "d", ROWS)
    for number, expected in ((3, 3), (None, None)):
        out, _ = run(tiny_model, dataset, lazy_tokenize=True, num_labels=number)
        assert json.loads((out / "encoder.json").read_text()).get("num_labels") == expected
    assert "num_labels" not in (out / "encoder.json").read_text()

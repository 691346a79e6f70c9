"""Rows that are encoded when they are needed, and what stands for those that cannot be trained."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from stages.data.encode import EncoderSettings, open_encoder
from stages.data.templates.rendered import TemplateSettings
from stages.errors import DataError
from stages.training.lazy import LazyRows, open_standard_rows
from stages.training.rows import IGNORED
from stages.training.usable import Usable
from tests.stages.training.later import LONG, messages, questions, write_lazy

LOGGER = logging.getLogger("test")


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Any:
    return open_encoder(tiny_model, EncoderSettings(max_length=128, truncation="delete"))


def lazy(folder: Path, rows: list[tuple[str, str]], encoder: Any, *, replaces: bool = True) -> LazyRows:
    parquet = write_lazy(folder / "tokens", rows) / "train.parquet"
    standard = open_standard_rows(parquet, folder / "copy.arrow")
    return LazyRows(standard, Usable(encoder, 384, "train.parquet", LOGGER), replaces=replaces)


def test_rows_are_what_the_encoder_makes_of_them(tmp_path: Path, encoder: Any) -> None:
    rows = questions(20)
    found = lazy(tmp_path, rows, encoder)
    assert len(found) == 20
    for index in (19, 0, 7, 3):  # in any order
        encoded = encoder.encode_row({"messages": messages(*rows[index])})
        assert found[index]["input_ids"].tolist() == encoded.input_ids.tolist()
        assert found[index]["labels"].tolist() == encoded.labels.tolist()
        assert found[index].keys() == {"input_ids", "labels"}
    with pytest.raises(IndexError):
        found[20]


def test_a_row_that_is_dropped_is_the_next_one(tmp_path: Path, encoder: Any, caplog: pytest.LogCaptureFixture) -> None:
    rows = questions(6)
    rows[2] = rows[3] = rows[5] = ("what?", LONG)
    found = lazy(tmp_path, rows, encoder)
    texts = [found[index]["input_ids"].tolist() for index in range(6)]
    assert found.usable.num_left_out == 2 + 1 + 1
    assert texts[2] == texts[3] == texts[4]
    assert texts[5] == texts[0]
    assert texts == [found[index]["input_ids"].tolist() for index in range(6)]
    assert [record.message for record in caplog.records] == [
        f"train: train.parquet row {row} is left out: too long" for row in (3, 4, 6)
    ]


def test_a_validation_row_that_is_dropped_counts_for_nothing(tmp_path: Path, encoder: Any) -> None:
    found = lazy(tmp_path, [("what?", LONG), ("what?", "sky")], encoder, replaces=False)
    assert found[0]["labels"].tolist() == [IGNORED]
    assert (found[1]["labels"] != IGNORED).any()


def test_nothing_can_be_trained(tmp_path: Path, encoder: Any) -> None:
    found = lazy(tmp_path, [("what?", LONG)] * 3, encoder)
    with pytest.raises(DataError, match=r"none of the 3 rows of train.parquet can be trained"):
        found[1]


def test_ids_that_the_model_does_not_know(tmp_path: Path, encoder: Any) -> None:
    found = lazy(tmp_path, questions(1), encoder)
    found.usable.vocabulary = 3
    with pytest.raises(DataError, match=r"train.parquet row 1 has the token id \d+, the model knows 3 tokens"):
        found[0]


def test_what_a_row_lacks_is_not_there(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    turn = pa.struct([("role", pa.string()), ("content", pa.string()), ("loss", pa.bool_())])
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "loss": False}]},
        {"messages": [{"role": "user", "content": "c"}], "tools": "[]"},
    ]
    schema = pa.schema([("messages", pa.list_(turn)), ("tools", pa.string())])
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "train.parquet")
    standard = open_standard_rows(tmp_path / "train.parquet", tmp_path / "copy.arrow")
    assert [standard[0], standard[1]] == rows


def test_a_copy_that_was_not_finished_is_made_again(tmp_path: Path) -> None:
    parquet = write_lazy(tmp_path / "tokens", questions(9)) / "train.parquet"
    (tmp_path / f"copy.{os.getpid()}.part").write_bytes(b"half")
    assert len(open_standard_rows(parquet, tmp_path / "copy.arrow")) == 9
    assert not list(tmp_path.glob("copy.*.part"))
    parquet.unlink()
    assert len(open_standard_rows(parquet, tmp_path / "copy.arrow")) == 9


def test_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_text("messages\n")
    with pytest.raises(DataError, match=r"train.parquet is no Parquet file of rows"):
        open_standard_rows(tmp_path / "train.parquet", tmp_path / "copy.arrow")
    assert not (tmp_path / "copy.arrow").exists()


@pytest.mark.parametrize("strict", [False, True])
def test_strict_ends_training_at_a_row_that_cannot_be_written(tiny_model: Path, strict: bool) -> None:
    encoder = open_encoder(tiny_model, EncoderSettings(TemplateSettings(use_chat_template=False), 64, "delete"))
    usable = Usable(encoder, 384, "train.parquet", LOGGER, strict=strict)
    assert usable({"messages": messages("what?", LONG)}, 1) is None, "too long is no fault of the row"
    two_questions = {"messages": [*messages("a", "b"), *messages("c", "d")]}
    if strict:
        with pytest.raises(DataError, match=r"^train\.parquet row 2: template generation writes one question"):
            usable(two_questions, 2)
    else:
        assert usable(two_questions, 2) is None

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stages.data.media import MediaFinder
from stages.data.readers import Malformed
from stages.data.row_maker import RowMaker
from stages.data.rows import RowError
from stages.data.self_cognition import SelfCognition
from stages.data.spec import Reading
from stages.errors import DataError


def shout(row: dict[str, Any]) -> dict[str, Any] | None:
    """A plugin's function: it makes a query of two columns, and wants no row about cats."""
    row["query"] = f"{row.pop('first')} {row.pop('second')}".upper()
    return None if "CAT" in row["query"] else row


def test_a_plugins_function_goes_before_everything_else() -> None:
    reading = Reading(columns={"reply": "response"}, function=shout)
    row = {"first": "big", "second": "dog", "reply": "r"}
    maker = RowMaker(42)
    assert maker.make(row, reading) == {
        "messages": [{"role": "user", "content": "BIG DOG"}, {"role": "assistant", "content": "r"}]
    }
    assert row == {"first": "big", "second": "dog", "reply": "r"}
    assert maker.make({"first": "big", "second": "cat", "reply": "r"}, reading) is None


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda row: row["gone"], "the plugin's function fails: KeyError: 'gone'"),
        (lambda row: [row], r"the plugin's function gives \[\{'query': 'q'\}\], not a row"),
        (lambda row: {"query": "q", "response": "\ud800"}, "the plugin's function gives text that is not Unicode"),
        (lambda row: {"query": "q"}, "no response"),
    ],
)
def test_a_plugins_function_that_fails_spoils_only_its_row(function: Any, reason: str) -> None:
    with pytest.raises(RowError, match=f"^{reason}"):
        RowMaker(42).make({"query": "q"}, Reading(function=function))


def test_a_plugin_may_stop_everything() -> None:
    def stop(row: dict[str, Any]) -> None:
        raise DataError("not this dataset")

    with pytest.raises(DataError, match="not this dataset"):
        RowMaker(42).make({"query": "q"}, Reading(function=stop))


def test_a_row_that_could_not_be_read_says_so_in_any_reading() -> None:
    with pytest.raises(RowError, match=r"^not JSON"):
        RowMaker(42).make(Malformed("not JSON: …"), Reading(function=shout))


def test_draws_go_on_over_files_that_are_read_alike() -> None:
    row = {"query": "q", "response": ["a", "b", "c", "d"]}
    one, several = RowMaker(42), RowMaker(42)
    same = Reading()
    expected = [one.make(row, same) for _ in range(20)]
    assert [several.make(row, Reading()) for _ in range(20)] == expected
    assert len({str(made) for made in expected}) == 4


def test_the_tag_of_a_row_chooses_the_name() -> None:
    maker = RowMaker(42, names=SelfCognition(["小燕", "Swift"]))
    made = [maker.make({"query": "q", "response": "{{NAME}}", "tag": tag}, Reading()) for tag in ("zh", "en")]
    assert [row and row["messages"][1]["content"] for row in made] == ["小燕", "Swift"]


def test_media_lie_beside_the_file_or_where_it_came_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    here, folder = tmp_path / "here", tmp_path / "folder"
    for place in (here, folder):
        place.mkdir()
    for path in (here / "a.png", folder / "a.png", folder / "b.png"):
        Image.new("RGB", (2, 2)).save(path)
    maker = RowMaker(42, media=MediaFinder(tmp_path / "scratch"))
    row = {"query": "<image><image>", "response": "r", "images": ["a.png", "b.png"]}
    for _ in range(2):
        made = maker.make(row, Reading(here=here, folder=folder))
        assert made is not None
        assert made["images"] == [str(here / "a.png"), str(folder / "b.png")]
    with caplog.at_level(logging.INFO):
        maker.report(logging.getLogger("test"))
    assert [record.getMessage() for record in caplog.records] == [
        "1 media files are not part of what was handed in: if only they change, this runs again with --force"
    ]
    assert RowMaker(42).make(row, Reading(here=here)) == {
        "messages": [{"role": "user", "content": "<image><image>"}, {"role": "assistant", "content": "r"}],
        "images": ["a.png", "b.png"],
    }


def test_a_registered_column_that_no_row_has_is_said(caplog: pytest.LogCaptureFixture) -> None:
    maker = RowMaker(42)
    reading = Reading(columns={"Ask": "query", "repply": "response"})
    maker.make({"ask": "q", "answer": "r"}, reading)
    maker.make({"query": "q", "answer": "r"}, reading)
    maker.report(logging.getLogger("test"))
    said = [record.getMessage() for record in caplog.records if "column" in record.getMessage()]
    assert said == ["no row has the column 'repply', which is to be read as response"]

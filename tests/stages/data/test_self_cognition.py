from __future__ import annotations

import logging

import pytest

from stages.data.self_cognition import SelfCognition
from stages.errors import DataError

ZH, EN = "我是{{NAME}}，由{{AUTHOR}}开发。", "I am {{NAME}}, made by {{AUTHOR}}."


def filled(text: str, names: SelfCognition, tag: object = None) -> str:
    row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]}
    names.fill(row, tag)
    return row["messages"][1]["content"]


@pytest.mark.parametrize(
    ("text", "tag", "expected"),
    [
        (ZH, None, "我是小燕，由甲开发。"),
        (EN, None, "I am Swift, made by Martin."),
        (ZH, "en", "我是Swift，由Martin开发。"),
        (EN, "zh", "I am 小燕, made by 甲."),
        (EN, "fr", "I am Swift, made by Martin."),
        ("{{NAME}} {{ NAME }} {{name}} {{author}}", None, "Swift Swift Swift Martin"),
        ("{{NAME} {NAME}} {{Name}} {{NAMES}}", None, "{{NAME} {NAME}} {{Name}} {{NAMES}}"),
        ("no placeholder", "zh", "no placeholder"),
    ],
)
def test_names_are_chosen_by_language(text: str, tag: object, expected: str) -> None:
    assert filled(text, SelfCognition(["小燕", "Swift"], ["甲", "Martin"]), tag) == expected


def test_one_name_stands_for_both_languages() -> None:
    names = SelfCognition(["Swift"], ["Martin"])
    assert filled(ZH, names) == "我是Swift，由Martin开发。"
    assert filled(EN, names) == "I am Swift, made by Martin."


def test_every_text_of_a_row_is_filled() -> None:
    row = {
        "messages": [{"role": "system", "content": "{{NAME}}"}, {"role": "assistant", "content": "a"}],
        "rejected_response": "not {{NAME}}",
    }
    SelfCognition(["Swift"]).fill(row)
    assert row == {
        "messages": [{"role": "system", "content": "Swift"}, {"role": "assistant", "content": "a"}],
        "rejected_response": "not Swift",
    }


@pytest.mark.parametrize(
    ("names", "text", "message"),
    [
        (SelfCognition(), "{{NAME}}", r"^\{\{NAME\}\} would stay as it is: .*`--model_name` and `--model_author`"),
        (SelfCognition(["Swift"]), EN, r"^\{\{AUTHOR\}\} would stay"),
        (SelfCognition([], ["Martin"]), EN, r"^\{\{NAME\}\} would stay"),
        (SelfCognition(), EN, r"^\{\{NAME\}\} and \{\{AUTHOR\}\} would stay"),
        (SelfCognition(["Swift"]), "{{author}}", r"^\{\{AUTHOR\}\} would stay"),
    ],
)
def test_a_placeholder_that_would_stay_is_an_error(names: SelfCognition, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        filled(text, names)


def test_what_was_given_in_vain_or_forgotten_is_said(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("test")
    vain, forgotten, used = SelfCognition(["Swift"], ["Martin"]), SelfCognition(), SelfCognition(["Swift"])
    assert filled("a", vain) == "a"
    assert filled("Dear {{name}}", forgotten) == "Dear {{name}}"
    assert filled("{{NAME}}", used) == "Swift"
    for names in (vain, forgotten, used):
        names.report(logger)
    assert [record.getMessage() for record in caplog.records] == [
        "`--model_name` `--model_author`: no row has {{NAME}} or {{AUTHOR}}, so nothing was replaced",
        "1 rows have {{name}} or {{author}}, which stay: `--model_name` and `--model_author` fill them in",
    ]

"""Every parameter on SWIFT's page has its type, default, choices and range; `parameters.json` has one row for each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from stages.arguments.command_line import shape
from stages.arguments.help import descriptions
from stages.arguments.recipe import FLOWS, recipe_arguments

ROWS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("parameters.json").read_text(encoding="utf-8"))
KINDS = {
    "str": {str},
    "int": {int},
    "float": {float},
    "bool": {bool},
    "json": {dict},
    "str|json": {str, dict},
    "bool|int": {bool, int},
    "List[str]": {str},
    "List[int]": {int},
}


def field_of(row: dict[str, Any]) -> FieldInfo:
    return recipe_arguments(row["command"]).model_fields[row["name"]]


def title(row: dict[str, Any]) -> str:
    return f"{row['command']}-{row['name']}"


def test_there_is_a_row_for_each_of_swifts_parameters() -> None:
    assert len(ROWS) == 189 + 5
    assert len({title(row) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=title)
def test_type_default_and_choices(row: dict[str, Any]) -> None:
    field = field_of(row)
    form = shape(field.rebuild_annotation())
    assert form.optional == row["optional"]
    assert form.many == row["type"].startswith("List")
    if row["choices"]:
        assert set(form.choices) == set(row["choices"])
    elif not form.choices:
        assert form.kinds == KINDS[row["type"]]
    if row["default"] == "(required)":
        assert field.is_required()
    else:
        assert field.get_default(call_default_factory=True) == row["default"]


@pytest.mark.parametrize("row", [row for row in ROWS if row["ok"] or row["choices"]], ids=title)
def test_values_that_are_taken(row: dict[str, Any]) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(field_of(row).rebuild_annotation())
    for value in [*row["ok"], *(row["choices"] or [])]:
        adapter.validate_python(value)
        adapter.validate_python(str(value) if isinstance(value, int | float) else value)


@pytest.mark.parametrize("row", [row for row in ROWS if row["bad"] or row["choices"]], ids=title)
def test_values_that_are_refused(row: dict[str, Any]) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(field_of(row).rebuild_annotation())
    for value in [*row["bad"], *(["no-such-choice"] if row["choices"] else [])]:
        with pytest.raises(ValidationError):
            adapter.validate_python(value)


@pytest.mark.parametrize("flow", FLOWS)
def test_every_field_has_a_line_of_help(flow: str) -> None:
    for name, text in descriptions(recipe_arguments(flow)).items():
        assert text, name
        assert text.endswith("."), name
        assert "\n" not in text, name

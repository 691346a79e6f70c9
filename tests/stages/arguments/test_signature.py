"""The flat signature that Prefect makes forms and `-p name=value` from."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from pydantic import TypeAdapter

from stages.arguments import ExportArguments, SftThenExportArguments, TrainArguments
from stages.arguments.base import Arguments
from stages.arguments.signature import MAIN, given, signature


@pytest.mark.parametrize("model", [SftThenExportArguments, ExportArguments, TrainArguments])
def test_it_is_flat_complete_and_concrete(model: type[Arguments]) -> None:
    parameters = signature(model).parameters
    assert set(parameters) == set(model.model_fields)
    for name, parameter in parameters.items():
        field = model.model_fields[name]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert (parameter.default is inspect.Parameter.empty) == field.is_required()
        assert not hasattr(parameter.default, "annotation"), "a FieldInfo is not a value"


def test_the_main_ones_come_first() -> None:
    names = list(signature(SftThenExportArguments).parameters)
    main = [name for name in MAIN if name in names]
    assert names[: len(main)] == main
    assert names[:2] == ["model", "dataset"]
    assert len(main) >= 40


def test_annotations_keep_what_a_value_must_be() -> None:
    parameters = signature(SftThenExportArguments).parameters
    schema = {
        name: TypeAdapter(parameters[name].annotation).json_schema() for name in ("lora_rank", "dataset", "model")
    }
    assert schema["lora_rank"] == {"type": "integer", "minimum": 1}
    assert {"type": "string"} in schema["dataset"]["anyOf"], "`-p dataset=rows.jsonl` needs no brackets"
    assert schema["model"]["type"] == "string"


def test_given_leaves_out_what_was_filled_in() -> None:
    defaults = {name: p.default for name, p in signature(SftThenExportArguments).parameters.items()}
    called: dict[str, Any] = {**defaults, "model": "m", "dataset": ["d"], "lora_rank": 16}
    assert given(SftThenExportArguments, called) == {"model": "m", "dataset": ["d"], "lora_rank": 16}

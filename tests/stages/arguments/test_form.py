"""The form of a deployment: what the UI draws, held to what a flow takes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prefect.utilities.callables import generate_parameter_schema

from stages.arguments import DownloadArguments, ExportArguments, SftArguments, SftThenExportArguments, TrainArguments
from stages.arguments.base import Arguments
from stages.arguments.form import SEVERAL, form
from stages.arguments.help import descriptions
from stages.arguments.signature import MAIN
from stages.arguments.unsupported import unsupported_values

MODELS = [SftThenExportArguments, SftArguments, ExportArguments, TrainArguments, DownloadArguments]


def fields(model: type[Arguments]) -> dict[str, dict[str, Any]]:
    """The fields as Prefect hands them to its UI."""
    schema = generate_parameter_schema(form(model), {}).model_dump_for_openapi()
    return {
        name: {**field, "required": name in schema.get("required", [])} for name, field in schema["properties"].items()
    }


def kinds(field: dict[str, Any]) -> list[str]:
    return [kind["type"] for kind in field.get("anyOf", [field])]


@pytest.mark.parametrize("model", MODELS)
def test_each_field_has_one_type_and_says_what_it_is(model: type[Arguments]) -> None:
    texts = descriptions(model)
    for name, field in fields(model).items():
        assert field["description"] == texts[name].replace(*SEVERAL)
        assert field["title"] == name
        assert "null" not in json.dumps(field), f"{name}: each type is a tab, and None is none"
        assert field["required"] == model.model_fields[name].is_required()
        assert kinds(field)[0] == "string" or "string" not in kinds(field), f"{name} begins with text"


@pytest.mark.parametrize("model", MODELS)
def test_defaults_are_those_of_the_arguments(model: type[Arguments]) -> None:
    for name, field in fields(model).items():
        default = model.model_fields[name].get_default(call_default_factory=True)
        if field["required"] or default in (None, []):
            assert "default" not in field, f"{name} is left empty"
        else:
            assert field["default"] == default


@pytest.mark.parametrize("model", MODELS)
def test_what_has_no_effect_yet_is_left_out(model: type[Arguments]) -> None:
    shown = fields(model)
    for name, field in shown.items():
        assert unsupported_values(name, "anything", model.NAME) != [], f"{name} is refused whatever its value"
        choices = field.get("enum", [])
        assert [value for value in choices if unsupported_values(name, value, model.NAME) is not None] == []
    assert not {"model_type", "local_repo_path", "hub_always_push"} & set(shown)


def test_the_main_forty_come_first_then_swifts_groups() -> None:
    names = list(fields(SftThenExportArguments))
    assert names[:4] == ["model", "dataset", "use_hf", "model_revision"]
    assert names[:40] == [name for name in MAIN if name in names]
    assert "merge_lora" not in names, "this flow always merges"
    assert names.index("top_k") < names.index("neftune_noise_alpha") < names.index("adam_beta1"), "as in --help"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tuner_backend", {"type": "string", "enum": ["peft", "unsloth"], "default": "peft"}),
        ("attn_impl", {"type": "string", "enum": ["flash_attn", "sdpa", "eager"]}),
        ("quant_bits", {"type": "integer", "enum": [1, 2, 3, 4, 8]}),
        ("learning_rate", {"type": "number", "exclusiveMinimum": 0}),
        ("push_to_hub", {"type": "boolean", "default": False}),
        ("dataset", {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
        ("system", {"type": "string"}),
    ],
)
def test_fields(name: str, expected: dict[str, Any]) -> None:
    field = fields(SftThenExportArguments)[name]
    assert {
        key: value for key, value in field.items() if key in {"type", "enum", "default", "anyOf", "exclusiveMinimum"}
    } == expected


def test_lists_are_spoken_of_as_a_form_has_them() -> None:
    assert fields(SftArguments)["dataset"]["description"].endswith("[#count]; several as a list.")


def test_the_schema_stays_small() -> None:
    assert len(json.dumps(fields(SftThenExportArguments))) < 80_000, "330 fields in 82 kB were found usable"

"""Frozen: the flags of each command, and the fields of each stage that make its key.

A changed default of a stage's field changes what a recorded key means: bump `version` in that stage's file, then write
the snapshot anew with UPDATE_SNAPSHOTS=1. A new field whose default does what was done before needs no bump.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import stages.arguments
from stages.arguments.recipe import FLOWS, recipe_arguments
from stages.registry import STAGE_NAMES


def class_name(stage: str) -> str:
    return f"{stage.title().replace('_', '')}Arguments"


def test_flags(frozen: Callable[[str, Any], None]) -> None:
    models = {flow: recipe_arguments(flow) for flow in FLOWS}
    frozen("flags", {flow: sorted([*model.model_fields, *model.aliases()]) for flow, model in models.items()})


def test_key_fields_and_their_defaults(frozen: Callable[[str, Any], None]) -> None:
    keys = {}
    for stage in STAGE_NAMES:
        fields = getattr(stages.arguments, class_name(stage)).model_fields
        keys[stage] = {
            name: "(required)" if field.is_required() else field.get_default(call_default_factory=True)
            for name, field in fields.items()
            if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("in_key") is False)
        }
    frozen("key_fields", keys)


def test_every_name_is_exported() -> None:
    for name in stages.arguments.__all__:
        assert getattr(stages.arguments, name).__name__ == name
    assert {class_name(stage) for stage in STAGE_NAMES} | set(FLOWS.values()) | {"Arguments"} == set(
        stages.arguments.__all__
    )


def test_a_stage_says_its_own_name() -> None:
    for stage in STAGE_NAMES:
        assert stage == getattr(stages.arguments, class_name(stage)).NAME
    for flow in FLOWS:
        assert flow == recipe_arguments(flow).NAME

"""The form that people fill in to run a flow: `form(SftArguments)` is a signature whose schema the Prefect UI draws.

It says less than `signature`, by which a flow is called: what is not acted upon yet has no field, and neither have the
choices that would be refused; what may be left out is empty, where a choice between a type and None would stand. All
the same a flow takes every value of the form under the same name, and so does `prefect deployment run -p`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, WithJsonSchema
from pydantic_core import MISSING, PydanticUndefined

from stages.arguments.base import Arguments
from stages.arguments.help import descriptions, groups
from stages.arguments.signature import MAIN
from stages.arguments.unsupported import UNSUPPORTED, applies, unsupported_values

__all__ = ["form", "parameter"]

Schema = dict[str, Any]

SETTLED = {"merge_lora": ("sft-then-export", "sft-then-evaluate", "nightly-retrain")}
"""What these flows take only one value of."""
SEVERAL = (", several separated by spaces", "; several as a list")
"""What is said of values on a command line, and in a form."""


def form(model: type[Arguments], own: Mapping[str, inspect.Parameter] | None = None) -> inspect.Signature:
    """Keyword-only parameters: the main ones first, then SWIFT's groups, in the order of `--help`.

    Args:
        model: the arguments.
        own: parameters of the flow itself, before all others.
    """
    texts = descriptions(model)
    ordered = [*MAIN, *(name for names in groups(model).values() for name in names), *model.model_fields]
    names = [name for name in dict.fromkeys(ordered) if name in model.model_fields and _is_for(name, model)]
    fields = [_field(name, model, texts[name].replace(*SEVERAL)) for name in names]
    return inspect.Signature([*(own or {}).values(), *fields])


def parameter(name: str, schema: Schema, text: str, default: Any = MISSING) -> inspect.Parameter:
    """A field of a form.

    Args:
        name: also its label.
        schema: what JSON is taken.
        text: stands below the label.
        default: stands in the field; MISSING for an empty one, which is left out of the run: null would have to be one
            of the types, and each a tab in the form.
    """
    annotation = Annotated[Any, WithJsonSchema(schema)]
    described = Field(default, description=text)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=described)


def _is_for(name: str, model: type[Arguments]) -> bool:
    """Whether a field does anything: it is acted upon, and not settled by the flow itself."""
    rules = [rule for rule in UNSUPPORTED.get(name, ()) if applies(rule, model.NAME)]
    return model.NAME not in SETTLED.get(name, ()) and not any(not rule.values for rule in rules)


def _field(name: str, model: type[Arguments], text: str) -> inspect.Parameter:
    field = model.model_fields[name]
    schema = _plain(TypeAdapter(field.rebuild_annotation()).json_schema(), name, model)
    default = PydanticUndefined if field.is_required() else field.get_default(call_default_factory=True)
    return parameter(name, schema, text, MISSING if default is None or default == [] else default)


def _plain(schema: Schema, name: str, model: type[Arguments]) -> Schema:
    """A schema without null and without choices that are refused; text before lists, for the form begins with it."""
    if "anyOf" in schema:
        kinds = [_plain(kind, name, model) for kind in schema["anyOf"] if kind.get("type") != "null"]
        kinds.sort(key=lambda kind: kind.get("type") != "string")
        rest = {key: value for key, value in schema.items() if key != "anyOf"}
        return {**rest, **(kinds[0] if len(kinds) == 1 else {"anyOf": kinds})}
    if "enum" in schema:
        taken = [value for value in schema["enum"] if unsupported_values(name, value, model.NAME) is None]
        return {**schema, "enum": taken}
    return schema

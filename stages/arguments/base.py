"""The base of every argument model: frozen, nothing unknown, one docstring a field.

A field is written `lora_rank: int = option(8, ge=1)` with its docstring on the next line; the docstring becomes the
flag's help, the label in the UI's form and the row in the parameter reference.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Arguments", "option"]


def option(default: Any, *, in_key: bool = True, **constraints: Any) -> Any:
    """A field with its default.

    Args:
        default: the value that stands for "not given"; such values are left out of keys.
        in_key: False where the value cannot change what a stage makes (logging, worker counts, output folders).
        constraints: pydantic's `ge`, `gt`, `le`, `lt`, `min_length`, `pattern`, `alias` …
    """
    extra = None if in_key else {"in_key": False}
    return Field(default, json_schema_extra=extra, **constraints)


class Arguments(BaseModel):
    """Parameters, checked when made and never changed after."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        defer_build=True,
        protected_namespaces=(),
        validate_default=False,
    )

    def key_fields(self) -> dict[str, Any]:
        """What goes into an action key: fields that change the output and differ from their default, as JSON values."""
        fields = type(self).model_fields
        return {
            name: value
            for name, value in self.model_dump(mode="json", exclude_defaults=True).items()
            if not (isinstance(extra := fields[name].json_schema_extra, dict) and extra.get("in_key") is False)
        }

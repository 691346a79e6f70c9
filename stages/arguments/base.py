"""The base of every argument model: frozen, nothing unknown, one docstring a field.

A field is written `lora_rank: int = option(8, ge=1)` with its docstring on the next line; the docstring becomes the
flag's help, the label in the UI's form and the row in the parameter reference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError, model_validator

from stages.arguments.unsupported import refuse_unsupported
from stages.errors import ArgumentsError

__all__ = ["Arguments", "Dtype", "JsonObject", "Strings", "WholeNumber", "load_json", "one_or_many", "option"]

A = TypeVar("A", bound="Arguments")


def one_or_many(value: object) -> object:
    """One text by itself stands for a list of it."""
    return [value] if isinstance(value, str) else value


def load_json(text: str) -> object:
    """What JSON text says, or the JSON file that `text` is the path of.

    Raises:
        ValueError: if it is neither.
    """
    try:
        if not text.lstrip().startswith(("{", "[")):
            text = Path(text).read_text(encoding="utf-8")
        return json.loads(text, parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise ValueError("neither JSON nor the path of a JSON file") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"not JSON ({error.strerror if isinstance(error, OSError) else error})") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _read_json(value: object) -> object:
    return load_json(value) if isinstance(value, str) else value


def _digits(value: object) -> object:
    return int(value) if isinstance(value, str) and value.strip().lstrip("-").isdigit() else value


Dtype = Literal["float16", "bfloat16", "float32"]
Strings = Annotated[list[str], BeforeValidator(one_or_many, json_schema_input_type=list[str] | str)]
"""Several values; one alone needs no brackets."""
JsonObject = Annotated[dict[str, JsonValue], BeforeValidator(_read_json, json_schema_input_type=dict[str, Any] | str)]
"""A JSON object: given as such, as JSON text, or as the path of a JSON file, whose content then counts."""
WholeNumber = BeforeValidator(_digits)
"""Lets a `Literal` of numbers take the text of a flag."""


def option(default: Any, *, in_key: bool = True, **constraints: Any) -> Any:
    """A field with its default.

    Args:
        default: the value that stands for "not given"; such values are left out of keys.
        in_key: False where the value cannot change what a stage makes (logging, worker counts, output folders).
        constraints: pydantic's `ge`, `gt`, `le`, `lt`, `min_length`, `pattern` …
    """
    return Field(default, json_schema_extra=None if in_key else {"in_key": False}, **constraints)


class Arguments(BaseModel):
    """Parameters, checked when made and never changed after.

    Attributes:
        GROUP: SWIFT's heading for the fields that the class declares; it orders `--help`.
        NAME: the stage or command whose arguments these are; `unsupported.py` speaks of it.
        ALIASES: other spellings of a field's name that are accepted too.
    """

    # Docstrings are read by `stages.arguments.help` when somebody asks for help: reading them here would take
    # inspect.getsource through every module at every start.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        defer_build=True,
        protected_namespaces=(),
        validate_default=False,
        allow_inf_nan=False,
    )
    GROUP: ClassVar[str] = ""
    NAME: ClassVar[str] = ""
    ALIASES: ClassVar[Mapping[str, str]] = {}

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            from stages.arguments.message import error_line

            raise ArgumentsError(error_line(error, type(self))) from None

    @model_validator(mode="before")
    @classmethod
    def _accept_aliases(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        aliases = {alias: name for alias, name in cls.aliases().items() if alias in values}
        if not aliases:
            return values
        settled = {name: value for name, value in values.items() if name not in aliases}
        for alias, name in aliases.items():
            if name in settled and str(settled[name]) != str(values[alias]):
                raise ValueError(
                    f"`--{alias} {values[alias]}` and `--{name} {settled[name]}` are one parameter: give it once"
                )
            settled[name] = values[alias]
        return settled

    # Declared here, it runs before the checks of any subclass: what is not supported is said first.
    @model_validator(mode="after")
    def _refuse_unsupported(self) -> Self:
        given = {name: getattr(self, name) for name in type(self).model_fields if self._given(name)}
        refuse_unsupported(given, self.NAME)
        return self

    def _given(self, name: str) -> bool:
        """Whether the user gave `name` a value other than its default; only for use in validators."""
        if name not in self.model_fields_set:
            return False
        default: object = type(self).model_fields[name].get_default(call_default_factory=True)
        return bool(getattr(self, name) != default)

    def _resolve(self, **values: object) -> None:
        """Settles what was left for us to decide; only for use in validators."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def aliases(cls) -> dict[str, str]:
        """Every other spelling that is accepted, with the field it stands for."""
        found: dict[str, str] = {}
        for base in cls.__mro__:
            found |= vars(base).get("ALIASES", {})
        return found

    def for_stage(self, stage: type[A], **changes: Any) -> A:
        """The part of a command's arguments that one stage declares, with `changes` on top."""
        values = {
            name: value
            for name, field in stage.model_fields.items()
            if name in type(self).model_fields
            and (value := getattr(self, name)) != field.get_default(call_default_factory=True)
        }
        return stage(**(values | changes))

    def key_fields(self) -> dict[str, Any]:
        """What goes into an action key: fields that change the output and differ from their default, as JSON values."""
        fields = type(self).model_fields
        return {
            name: value
            for name, value in self.model_dump(mode="json", exclude_defaults=True).items()
            if not (isinstance(extra := fields[name].json_schema_extra, dict) and extra.get("in_key") is False)
        }

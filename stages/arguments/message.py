"""Turns pydantic's errors into Martlet's one line: `--lora_rank 0: must be at least 1`.

The same line is given for a flag, a key in a recipe, a parameter from Prefect's form and a keyword in Python.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

if TYPE_CHECKING:
    from stages.arguments.base import Arguments

__all__ = ["choose_from", "closest", "error_line", "shorten", "unknown_option"]

# pydantic's word for what is wrong → ours; {…} is filled from the error's context.
_FACTS = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "dict_type": 'must be a JSON object such as {{"min_lr": 1e-6}}, or the path of a JSON file',
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "needs at least {min_length} value",
    "too_long": "takes at most {max_length} values, not {actual_length}",
    "string_too_short": "must not be empty",
}
_MANY = 16
# Flags that scripts for older versions carry.
_GONE = {
    "logging_dir": "TensorBoard's files are in runs/ below --output_dir",
    "overwrite_output_dir": "each run has a folder of its own, unless --add_version false is given",
    "do_sample": "--temperature 0 takes the likeliest token",
}
_REQUIRED = {
    "model": "give a hub id or a local folder",
    "dataset": "give a file, a folder or a hub id, such as rows.jsonl or org/name#500",
}


def shorten(value: object, limit: int = 60) -> str:
    """`value` as it would be typed, cut where it gets long."""
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    text = text if text.strip() else repr(text)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def closest(name: str, choices: Iterable[str]) -> str:
    """` Did you mean X?`, or nothing if no choice comes near."""
    found = get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f" Did you mean {found[0]}?" if found else ""


def choose_from(value: str, choices: list[str]) -> str:
    """`choose from a, b. Did you mean a?`; of many choices only the closest is named."""
    hint = closest(value, choices)
    if len(choices) <= _MANY:
        return f"choose from {', '.join(choices)}{f'.{hint}' if hint else ''}"
    return f"choose from {len(choices)} values, which `--help` lists{f'.{hint}' if hint else ''}"


def unknown_option(name: str, model: type[Arguments], see: str = "") -> str:
    """The line for a name that `model` does not have; `see` says where to look if nothing comes near."""
    known = [f"--{field}" for field in (*model.model_fields, *model.aliases())]
    if gone := _GONE.get(name):
        return f"unknown option --{name}: {gone}"
    return f"unknown option --{name}.{closest(f'--{name}', known) or see}".removesuffix(".")


def error_line(error: ValidationError, model: type[Arguments]) -> str:
    """One line for `error`: what is wrong first, then the names of whatever else is."""
    details = sorted(error.errors(include_url=False), key=lambda detail: detail["loc"][:1] != ("model",))
    unknown = [detail for detail in details if detail["type"] == "extra_forbidden"]
    first = (unknown or details)[0]
    names = list(dict.fromkeys(str(detail["loc"][0]) for detail in details if detail["loc"]))
    others = [f"--{name}" for name in names if not first["loc"] or name != str(first["loc"][0])]
    return _line(first, model) + (f" (also wrong: {', '.join(others)})" if others else "")


def _line(detail: Any, model: type[Arguments]) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "value_error":
        fact = str(context["error"])
        return f"{_given(detail)}: {fact}" if detail["loc"] else fact
    name = str(detail["loc"][0])
    if kind == "extra_forbidden":
        return unknown_option(name, model)
    if kind == "missing" or (kind == "too_short" and name in _REQUIRED):
        return f"--{name} is required: {_REQUIRED.get(name, 'give a value')}"
    if kind == "literal_error":
        choices = [choice.strip("'") for choice in context["expected"].replace(" or ", ", ").split(", ")]
        return f"{_given(detail)}: {choose_from(str(detail['input']), choices)}"
    if kind not in _FACTS:
        return f"{_given(detail)}: {detail['msg']}"
    numbers = {key: f"{value:g}" if isinstance(value, float) else value for key, value in context.items()}
    return f"{_given(detail)}: {_FACTS[kind].format(**numbers)}"


def _given(detail: Any) -> str:
    return f"--{detail['loc'][0]} {shorten(detail['input'])}"

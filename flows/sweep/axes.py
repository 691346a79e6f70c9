"""The command line of a sweep: `read_axes(["--lora_rank", "8", "16", "--seed", "1"], SftArguments)`.

An option with several values is an axis. One that takes a list (`--target_modules`) has one value, unless each word is
a list of its own: quoted, `--target_modules "q_proj v_proj" "q_proj k_proj"`, or JSON, `'["q_proj"]' '["v_proj"]'`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stages.arguments.base import Arguments
from stages.arguments.command_line import Shape, flag_value, shape, split_flags
from stages.arguments.message import shorten, unknown_option
from stages.errors import ArgumentsError

__all__ = ["read_axes"]


def read_axes(
    argv: list[str], model: type[Arguments], prog: str = "martlet sweep"
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """What stays the same in every run, and the axes with their values, by field.

    Raises:
        ArgumentsError: an unknown option, one given twice, a value given twice, a list that can be read in two ways.
    """
    aliases = model.aliases()
    fixed: dict[str, Any] = {}
    axes: dict[str, list[Any]] = {}
    for typed, words in split_flags(argv):
        name = typed.replace("-", "_")
        name = aliases.get(name, name)
        field = model.model_fields.get(name)
        if field is None:
            raise ArgumentsError(unknown_option(typed, model, f" See `{prog} --help`"))
        if name in fixed or name in axes:
            raise ArgumentsError(f"--{name} is given twice: give all of its values after one --{name}")
        values = _values(name, words, shape(field.rebuild_annotation()))
        if len(values) == 1:
            fixed[name] = values[0]
            continue
        for value in values:
            if values.count(value) > 1:
                raise ArgumentsError(f"--{name} has the value {shorten(value)} twice")
        axes[name] = values
    return fixed, axes


def _values(name: str, words: list[str], form: Shape) -> list[Any]:
    if not form.many:
        return [flag_value(name, [word], form) for word in words] or [flag_value(name, words, form)]
    if any(word.lstrip().startswith("[") for word in words):
        return [_json_list(name, word) for word in words]
    with_space = [word for word in words if len(word.split()) > 1]
    if len(words) < 2 or not with_space:
        return [flag_value(name, words, form)]
    plain = next((word for word in words if word not in with_space), None)
    path = next((word for word in with_space if Path(word.split("#")[0]).expanduser().exists()), None)
    if plain is not None or path is not None:
        odd = f"{plain!r} has no space and others have" if plain is not None else f"{path!r} is a file, not a list"
        raise ArgumentsError(
            f"--{name}: {odd}, so this may be one list or several: write every list as JSON, such as "
            f"'{json.dumps([plain or path])}'"
        )
    return [word.split() for word in words]


def _json_list(name: str, word: str) -> list[str]:
    try:
        value = json.loads(word)
    except ValueError:
        value = None
    if not isinstance(value, list) or not all(isinstance(item, str | int) for item in value):
        raise ArgumentsError(f"--{name} {shorten(word)}: not a JSON list, as its other values are")
    return value

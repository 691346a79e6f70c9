"""Reads flags in SWIFT's dialect: `parse(["--lora_rank", "8", "--packing"], SftArguments)`.

`--lora_rank 8`, `--lora_rank=8`, `--lora-rank 8`; lists as `--target_modules a b c`; `--packing true` and a bare
`--packing`; `none` where a value may be left out. Not argparse, which takes `-1e-5` for a flag, knows no bare booleans
beside `--packing true`, and has no hook for "did you mean"; what is left of its work is `read_flags`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from stages.arguments.base import Arguments
from stages.arguments.message import choose_from, shorten, unknown_option
from stages.errors import ArgumentsError

__all__ = ["Shape", "flag_value", "help_text", "merge", "parse", "read_flags", "shape", "split_flags"]

A = TypeVar("A", bound=Arguments)

_FLAG = re.compile(r"--([A-Za-z][\w-]*)(?:=(.*))?", re.DOTALL)


class Shape(NamedTuple):
    """How a field is typed: what may stand after its flag.

    Attributes:
        kinds: the types that a value may have.
        choices: the values of its `Literal`s.
        many: whether it takes several values.
        optional: whether it may be `none`.
    """

    kinds: frozenset[type]
    choices: tuple[Any, ...]
    many: bool
    optional: bool


def parse(argv: list[str], model: type[A], *, base: Mapping[str, Any] | None = None, prog: str = "martlet") -> A:
    """The arguments that `argv` spells, on top of those in `base` (a recipe's).

    Args:
        argv: flags and their values, without the command.
        model: the class to make; `NAME`s its command.
        base: values by field, which flags override.
        prog: how the command was called, for the hint at its help.

    Raises:
        ArgumentsError: one line for what is wrong first.
    """
    return model(**merge(base or {}, read_flags(argv, model, prog), model))


def merge(base: Mapping[str, Any], flags: Mapping[str, Any], model: type[Arguments]) -> dict[str, Any]:
    """`base` with `flags` on top; a flag also replaces the other spellings of its parameter."""
    aliases = model.aliases()
    replaced = {aliases.get(name, name) for name in flags}
    return {name: value for name, value in base.items() if aliases.get(name, name) not in replaced} | dict(flags)


def read_flags(argv: list[str], model: type[Arguments], prog: str = "martlet") -> dict[str, Any]:
    """What `argv` gives, by field: text, a list of texts, True for a bare flag, None for `none`.

    Raises:
        ArgumentsError: an unknown flag, one given twice, one without its value or with too many.
    """
    aliases = model.aliases()
    given: dict[str, Any] = {}
    for typed, words in split_flags(argv):
        name = typed.replace("-", "_")
        field = model.model_fields.get(aliases.get(name, name))
        if field is None:
            raise ArgumentsError(unknown_option(typed, model, f" See `{prog} --help`"))
        value = flag_value(name, words, shape(field.rebuild_annotation()))
        if name in given:
            raise ArgumentsError(f"--{name} is given twice: {shorten(given[name])} and {shorten(value)}")
        given[name] = value
    return given


def split_flags(argv: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag of a command line as it was typed, without its dashes, and the words after it."""
    name, words = "", list[str]()
    for word in argv:
        match = _FLAG.fullmatch(word)
        if match is None:
            if not name:
                raise ArgumentsError(f"unexpected {shorten(word)}: parameters are written --name value")
            words.append(word)
            continue
        if name:
            yield name, words
        name, words = match[1], [match[2]] if match[2] is not None else []
    if name:
        yield name, words


def flag_value(name: str, words: list[str], form: Shape) -> Any:
    """What the words after a flag say: text, a list of texts, True for a bare flag, None for `none`."""
    if form.optional and len(words) == 1 and words[0].lower() in ("none", "null"):
        return None
    if not words:
        if bool in form.kinds:
            return True
        hint = f": {choose_from('', list(map(str, form.choices)))}" if form.choices else ""
        raise ArgumentsError(f"--{name} needs a value{hint}")
    if form.many:
        return words
    if len(words) > 1:
        raise ArgumentsError(f"--{name} takes one value, not {len(words)}: {shorten(words)}")
    return words[0]


def shape(annotation: Any) -> Shape:
    """What an annotation lets through, told from its types."""
    kinds: set[type] = set()
    choices: list[Any] = []
    for member in _members(annotation):
        origin = get_origin(member)
        if origin is Literal:
            choices += get_args(member)
            continue
        kinds.add(origin or member)
        if origin is list:
            items = shape(get_args(member)[0])
            kinds |= items.kinds
            choices += items.choices
    return Shape(
        frozenset(kinds - {type(None), list}), tuple(choices), many=list in kinds, optional=type(None) in kinds
    )


def _members(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield annotation


def help_text(model: type[Arguments], prog: str) -> str:
    """The text of `--help`: every parameter under SWIFT's headings, with default, choices and what is not there yet."""
    from stages.arguments.help import help_text as text

    return text(model, prog)

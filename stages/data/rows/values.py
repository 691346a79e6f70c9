"""Single values of a row: `text(row["query"], "query")` is the text there, or a `RowError` that says why not."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from typing import Any, Literal

__all__ = [
    "Kind",
    "Message",
    "RowError",
    "check_encodable",
    "dump_json",
    "literal",
    "quoted",
    "text",
    "whole_number",
    "without_nulls",
]

Kind = Literal[
    "unreadable", "ambiguous columns", "no answer", "wrong turns", "wrong type", "preference", "label", "tools",
    "media", "objects", "plugin", "other",
]  # fmt: skip
Message = dict[str, Any]


class RowError(ValueError):
    """Why a row cannot be used; the caller adds where it stands.

    Attributes:
        kind: what rows that are dropped are counted by.
    """

    def __init__(self, reason: str, kind: Kind = "other") -> None:
        super().__init__(reason)
        self.kind = kind


def text(value: Any, what: str) -> str:
    """Text as it is, a number as it is written."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and value != value):  # how pandas writes that there is none
        raise RowError(f"{what} is missing", "no answer" if what == "response" else "wrong type")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise RowError(f"{what} is not text: {value!r:.80}", "wrong type")


def literal(value: Any, what: str, kind: Kind = "wrong type") -> Any:
    """A value, or one that is written as JSON or as Python."""
    if not isinstance(value, str):
        return value
    import orjson

    try:
        return orjson.loads(value)
    except ValueError:
        pass
    try:
        read = ast.literal_eval(value.strip())
        check_encodable(read)
        return read
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        raise RowError(f"{what} are neither a list nor the text of one: {value!r:.80}", kind) from None


def check_encodable(value: Any) -> None:
    """Python's text may hold half a character, which no file and no tokenizer takes.

    Raises:
        ValueError: it does.
    """
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, Mapping):
        for one in (*value, *value.values()):
            check_encodable(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            check_encodable(one)


def whole_number(value: Any) -> int | None:
    """A whole number, also as text (CSV) or as a float without fraction (pandas); true and false are 1 and 0."""
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        word = value.strip()
        if word.lower() in ("true", "false"):
            return int(word.lower() == "true")
        if word.isascii() and word.isdigit() and len(word) < 20:
            return int(word)
    return None


def without_nulls(value: Any) -> Any:
    """Objects without their empty fields: tables give every object the fields of all others."""
    if isinstance(value, Mapping):
        return {name: without_nulls(one) for name, one in value.items() if one is not None}
    if isinstance(value, (list, tuple)):
        return [without_nulls(one) for one in value]
    return value


def dump_json(value: Any, what: str, kind: Kind) -> str:
    """JSON in one line."""
    import orjson

    try:
        return orjson.dumps(value).decode()
    except (TypeError, ValueError) as error:
        raise RowError(f"{what} cannot be written as JSON: {error}", kind) from None


def quoted(names: Iterable[Any]) -> str:
    """The first dozen names for a message."""
    return ", ".join(repr(name) for name in list(names)[:12])

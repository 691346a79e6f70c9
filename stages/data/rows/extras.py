"""The columns beside the conversation: `read_label(True) == 1`, `read_tools([{"name": "f"}]) == '[{"name":"f"}]'`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.data.rows.values import RowError, dump_json, whole_number, without_nulls

__all__ = ["read_label", "read_tools"]

INT64 = 1 << 63


def read_label(value: Any) -> int:
    """KTO's true or false as 1 or 0, or the number of a class; also as text, as in CSV."""
    number = whole_number(value)
    if number is None or not 0 <= number < INT64:
        raise RowError(f"label is true, false or a whole number from 0, not {value!r:.80}", "label")
    return number


def is_class(value: Any) -> bool:
    """Whether a label numbers a class instead of saying good or bad."""
    return not isinstance(value, bool) and str(value).lower() not in ("true", "false")


def read_tools(value: Any) -> str | None:
    """JSON text of a list of tools, each with a name; None for an empty list."""
    if isinstance(value, str):
        if not value.strip():
            return None
        tools = _parse(value, "tools")
    else:
        tools = without_nulls(value)
    tools = tools if isinstance(tools, list) else [tools]
    tools = [_parse(tool, f"tool {number}") if isinstance(tool, str) else tool for number, tool in enumerate(tools, 1)]
    for number, tool in enumerate(tools, start=1):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowError(f"tool {number} is {tool!r:.80}, not an object with a name", "tools")
    return dump_json(tools, "tools", "tools") if tools else None


def _parse(value: str, what: str) -> Any:
    import orjson

    try:
        return orjson.loads(value)
    except ValueError as error:
        raise RowError(f"{what} is not JSON ({error}): {value!r:.80}", "tools") from None

"""Turns a row of any common format into a standard row: `Standardizer(seed=42).standardize(row)`.

A standard row has `messages`, a list of {role, content} in which an optional system turn is followed by pairs of a user
(or tool) turn and an assistant turn, and those of SWIFT's other columns that the row has.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from stages.data.readers import Malformed

__all__ = ["COLUMNS", "RowError", "Standardizer"]

Message = dict[str, str]

ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "system": "system",
    "tool": "tool",
}
CONVERSATIONS = ("messages", "conversations", "conversation")

# SWIFT's names for each standard column; the standard name itself comes first.
COLUMNS: dict[str, tuple[str, ...]] = {
    "query": ("query", "prompt", "input", "instruction", "question"),
    "response": (
        "response", "answer", "output", "targets", "target", "answer_key", "solution", "answers", "text", "completion",
        "content",
    ),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "rejected_response": ("rejected_response",),
    "rejected_messages": ("rejected_messages",),
    "label": ("label",),
    "tools": ("tools",),
    "objects": ("objects",),
    "images": ("images", "image"),
    "videos": ("videos", "video"),
    "audios": ("audios", "audio"),
}  # fmt: skip
TARGETS = {name: target for target, names in COLUMNS.items() for name in names}
MEDIA = ("images", "videos", "audios")


class RowError(ValueError):
    """Why a row cannot be used; the caller adds where it stands."""


@dataclass(frozen=True)
class _Plan:
    """How rows with a given set of columns are read."""

    format: Literal["messages", "alpaca", "query"]
    conversation: str
    columns: Mapping[str, str]
    instruction: str = ""
    input: str = ""


class Standardizer:
    """Reads rows; keeps the state of the draw where a row has several answers."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def standardize(self, row: Mapping[str, Any] | Malformed) -> dict[str, Any]:
        """The row with standard columns.

        Raises:
            RowError: it could not be read, columns that cannot be told apart, a missing answer, turns out of order …
        """
        if isinstance(row, Malformed):
            raise RowError(row.reason)
        plan = _plan(tuple(row))
        values = {target: row[column] for target, column in plan.columns.items() if row[column] is not None}
        if plan.format == "messages":
            messages = _read_conversation(row[plan.conversation])
        else:
            messages = self._question_and_answer(row, plan, values)
        if (system := values.get("system")) is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": _text(system, "system")})
        _check(messages)
        return {"messages": messages, **_others(values, messages)}

    def _question_and_answer(self, row: Mapping[str, Any], plan: _Plan, values: Mapping[str, Any]) -> list[Message]:
        if plan.format == "alpaca":
            parts = [row[plan.instruction], row[plan.input]]
            values = {
                **values,
                "query": "\n".join(_text(part, "instruction") for part in parts if part not in (None, "")),
            }
        answer = values.get("response")
        if isinstance(answer, list) and answer and not isinstance(answer[0], dict):
            answer = self._random.choice(answer)
        if answer is None:
            raise RowError(
                f"no response: it has {_named(row)}. Name the column one of {', '.join(COLUMNS['response'])}"
            )
        messages = [message for turn in _history(values.get("history")) for message in turn]
        if "query" in values:
            messages.append({"role": "user", "content": _text(values["query"], "query")})
        messages.append({"role": "assistant", "content": _text(answer, "response")})
        return messages


@lru_cache(maxsize=1024)
def _plan(columns: tuple[str, ...]) -> _Plan:
    lower = {column.lower(): column for column in columns}
    conversations = [column for column in columns if column.lower() in CONVERSATIONS]
    if len(conversations) > 1:
        raise RowError(f"columns {_quoted(conversations)} all are conversations: drop all but one")
    if conversations:
        others = [column for column in columns if TARGETS.get(column.lower()) not in (None, "query", "response")]
        return _Plan("messages", conversations[0], _mapped(others))
    if "instruction" in lower and "input" in lower:
        rest = [column for column in columns if TARGETS.get(column.lower()) not in (None, "query")]
        if "output" in lower:
            rest = [c for c in rest if TARGETS[c.lower()] != "response"] + [lower["output"]]
        return _Plan("alpaca", "", _mapped(rest), lower["instruction"], lower["input"])
    known = [column for column in columns if column.lower() in TARGETS]
    return _Plan("query", "", _mapped(known))


def _mapped(columns: Sequence[str]) -> dict[str, str]:
    """Standard names to the row's columns; the standard name itself wins over the others.

    Raises:
        RowError: two columns mean the same, and neither has the standard name.
    """
    found: dict[str, list[str]] = {}
    for column in columns:
        found.setdefault(TARGETS[column.lower()], []).append(column)
    mapped = {}
    for target, names in found.items():
        standard = [name for name in names if name.lower() == target]
        if len(names) > 1 and len(standard) != 1:
            raise RowError(f"columns {_quoted(names)} all mean {target}: rename or drop all but one")
        mapped[target] = (standard or names)[0]
    return mapped


def _read_conversation(value: Any) -> list[Message]:
    """Messages with roles (OpenAI's and ShareGPT's names), or ShareGPT's pairs of human and assistant."""
    turns = _literal(value, "messages")
    if not isinstance(turns, list) or not turns:
        raise RowError(f"messages are a list of turns, not {value!r:.80}")
    messages = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping):
            raise RowError(f"message {number} is {turn!r:.80}, not an object with role and content")
        turn = {key: one for key, one in turn.items() if one is not None}
        if "role" in turn or "from" in turn:
            messages.append(_message(turn, number))
        else:
            messages.extend(_pair(turn, number))
    return messages


def _message(turn: Mapping[str, Any], number: int) -> Message:
    name = turn.get("role", turn.get("from"))
    role = ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise RowError(f"message {number} has role {name!r:.80}. Choose from: {', '.join(ROLES)}")
    if turn.get("tool_calls"):
        raise RowError(f"message {number} has tool_calls, which are not supported yet: write the call into content")
    return {"role": role, "content": _text(turn.get("content", turn.get("value")), f"content of message {number}")}


def _pair(turn: Mapping[str, Any], number: int) -> list[Message]:
    roles = {ROLES[name.lower()]: value for name, value in turn.items() if name.lower() in ROLES}
    if set(roles) - {"system"} != {"user", "assistant"}:
        raise RowError(f"message {number} has neither role and content nor human and assistant: {_named(turn)}")
    order = [role for role in ("system", "user", "assistant") if role in roles]
    return [{"role": role, "content": _text(roles[role], f"{role} of message {number}")} for role in order]


def _history(value: Any) -> list[list[Message]]:
    turns = _literal(value, "history") if value is not None else []
    if not isinstance(turns, (list, tuple)):
        raise RowError(f"history is a list of [query, response], not {value!r:.80}")
    read = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, (list, tuple)) or len(turn) != 2:
            raise RowError(f"turn {number} of history is {turn!r:.80}, not [query, response]")
        query, answer = (_text(one, f"turn {number} of history") for one in turn)
        read.append([{"role": "user", "content": query}, {"role": "assistant", "content": answer}])
    return read


def _check(messages: Sequence[Message]) -> None:
    """An optional system turn, then pairs; pre-training text is one assistant turn alone."""
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    if len(turns) == 1 and turns[0]["role"] == "assistant":
        turns = [{"role": "user", "content": ""}, *turns]
    offset = 1 + len(messages) - len(turns)
    for index, turn in enumerate(turns):
        expected = "assistant" if index % 2 else "user"
        if turn["role"] != expected and not (expected == "user" and turn["role"] == "tool"):
            raise RowError(f"message {index + offset} is of role {turn['role']}, where one of {expected} is due")
        if expected == "assistant" and not turn["content"].strip():
            raise RowError(f"message {index + offset}, an answer, is empty")
    if len(turns) % 2 or not turns:
        raise RowError("the last message is not an answer of the assistant")


def _others(values: Mapping[str, Any], messages: list[Message]) -> dict[str, Any]:
    """The columns beside the conversation that later stages know."""
    import orjson

    others: dict[str, Any] = {}
    for name in ("tools", "objects"):
        if name in values:
            value = values[name]
            others[name] = value if isinstance(value, str) else orjson.dumps(value).decode()
    for name in MEDIA:
        if name in values:
            value = values[name]
            others[name] = [_text(one, name) for one in (value if isinstance(value, list) else [value])]
    if "label" in values:
        if not isinstance(values["label"], int):
            raise RowError(f"label is true, false or a whole number, not {values['label']!r:.80}")
        others["label"] = int(values["label"])
    if (rejected := _rejected(values, messages)) is not None:
        if rejected == messages[-1]["content"]:
            raise RowError("the rejected answer equals the chosen one")
        others["rejected_response"] = rejected
    return {name: value for name, value in others.items() if value not in (None, [], "")}


def _rejected(values: Mapping[str, Any], messages: list[Message]) -> str | None:
    if "rejected_response" in values:
        return _text(values["rejected_response"], "rejected_response")
    if "rejected_messages" not in values:
        return None
    rejected = _read_conversation(values["rejected_messages"])
    prompt, other = ([m for m in turns[:-1] if m["role"] != "system"] for turns in (messages, rejected))
    if prompt != other or rejected[-1]["role"] != "assistant":
        raise RowError("rejected_messages do not have the same turns as messages before their last answer")
    return rejected[-1]["content"]


def _text(value: Any, what: str) -> str:
    """Text as it is, numbers as they are written, parts of type text joined."""
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in value):
        return "".join(_text(part.get("text"), what) for part in value)
    if value is None:
        raise RowError(f"{what} is missing")
    raise RowError(f"{what} is not text: {value!r:.80}")


def _literal(value: Any, what: str) -> Any:
    """A list, or a list written as JSON or as Python."""
    if not isinstance(value, str):
        return value
    import orjson

    try:
        return orjson.loads(value)
    except ValueError:
        pass
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise RowError(f"{what} are neither a list nor the text of one: {value!r:.80}") from None


def _named(row: Mapping[str, Any]) -> str:
    return f"columns {_quoted(list(row))}" if row else "no columns"


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:12])

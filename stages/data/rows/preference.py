"""The worse of two answers: `read_rejected({"rejected_response": "b"}, messages, TurnReader(), {}) == "b"`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.data.rows.content import TAGS
from stages.data.rows.turns import TurnReader
from stages.data.rows.values import Message, RowError, text

__all__ = ["append_chosen", "read_rejected"]

Media = dict[str, list[str]]


def append_chosen(chosen: Any, prompt: list[Message], reader: TurnReader, media: Media) -> list[Message]:
    """The conversation up to the better answer; a whole conversation in the column `chosen` stands for itself."""
    if not _is_turns(chosen):
        return [*prompt, {"role": "assistant", "content": text(chosen, "chosen")}]
    turns = reader.read(_turns(chosen), "chosen", media)
    return turns if turns[0]["role"] != "assistant" else [*prompt, *turns]


def read_rejected(values: Mapping[str, Any], messages: list[Message], reader: TurnReader, media: Media) -> str | None:
    """The worse answer's text; of two conversations, `messages` is cut off behind the last turn that differs.

    Args:
        values: `rejected_response`, `rejected_messages` or `rejected`.
        messages: the row's.
        reader: of turns.
        media: those of `messages`, which the other conversation must have too.

    Raises:
        RowError: there is no difference, the conversations differ in more than an answer, the answer calls tools.
    """
    value = next((values[name] for name in ("rejected_response", "rejected") if name in values), None)
    if value is None and values.get("rejected_messages") in (None, ""):
        return None
    if messages[-1]["role"] != "assistant":
        raise RowError("there is a rejected answer, but no chosen one", "preference")
    if value is not None and not _is_turns(value):
        return _differing(text(value, "rejected_response"), messages[-1])
    name = "rejected_messages" if value is None else "rejected"
    others: Media = {}
    turns = reader.read(values["rejected_messages"] if value is None else _turns(value), name, others)
    if value is not None and len(turns) == 1 and turns[0]["role"] == "assistant":
        return _differing(_only_text(turns[0]), messages[-1])
    if any(found != media.get(kind) for kind, found in others.items()):
        raise RowError(f"{name} show other media than messages", "preference")
    return _differing(_only_text(_last_difference(messages, turns, name)), messages[-1])


def _last_difference(messages: list[Message], rejected: list[Message], name: str) -> Message:
    """The rejected turn that differs; what follows it in both is taken off `messages`."""
    start = 1 if messages[0]["role"] == "system" else 0
    other_start = 1 if rejected[0]["role"] == "system" else 0
    if start and other_start and messages[0]["content"] != rejected[0]["content"]:
        raise RowError(f"{name} have another system message than messages", "preference")
    turns, others = messages[start:], rejected[other_start:]
    if len(turns) != len(others):
        reason = f"messages have {len(turns)} turns and {name} {len(others)}: they differ in one answer"
        raise RowError(reason, "preference")
    last = next((index for index in reversed(range(len(turns))) if turns[index] != others[index]), None)
    if last is None:
        raise RowError("the rejected answer equals the chosen one", "preference")
    roles = (turns[last]["role"], others[last]["role"])
    if turns[:last] != others[:last] or roles != ("assistant", "assistant"):
        raise RowError(f"{name} do not have the same turns as messages before their last answer", "preference")
    if any(tag in turn["content"] for turn in turns[last + 1 :] for tag in TAGS.values()):
        raise RowError(f"{name} and messages show media after the last answer that differs", "preference")
    del messages[start + last + 1 :]
    return others[last]


def _differing(rejected: str, chosen: Message) -> str:
    if not rejected or rejected.isspace():
        raise RowError("the rejected answer is empty", "preference")
    if rejected == chosen["content"]:
        raise RowError("the rejected answer equals the chosen one", "preference")
    return rejected


def _only_text(turn: Message) -> str:
    if "tool_calls" in turn:
        raise RowError("the rejected answer has tool_calls: write the call into its content", "preference")
    return str(turn["content"])


def _is_turns(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(one, Mapping) for one in value)
    )


def _turns(value: Any) -> Any:
    return [value] if isinstance(value, Mapping) else value

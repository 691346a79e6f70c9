"""Hands a standard row to a chat template as `apply_chat_template` takes it: `served_prompt(chat, row)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.data.chat_template import ChatTemplate
from stages.data.templates.tools import parse_calls, parse_tools, to_json

__all__ = ["CALL_FORMS", "CallForm", "served_prompt", "spoken", "tools_of", "uses_tools"]


@dataclass(frozen=True)
class CallForm:
    """What a template takes calls as; templates differ.

    Attributes:
        content: what stands for no text beside calls.
        text_arguments: arguments are JSON text, as in OpenAI's API, not an object.
    """

    content: str | None = ""
    text_arguments: bool = False


CALL_FORMS = tuple(CallForm(content, text) for text in (False, True) for content in ("", None))


def spoken(messages: Sequence[Mapping[str, Any]], form: CallForm | None = None) -> list[dict[str, Any]]:
    """Messages with OpenAI's tool_calls, and the ids that some templates want of them.

    Raises:
        RowError: tool_calls that cannot be read.
    """
    form = form or CallForm()
    turns: list[dict[str, Any]] = []
    open_ids: list[str] = []
    number = 0
    for message in messages:
        turn = {"role": message["role"], "content": message["content"]}
        if message.get("tool_calls"):
            calls: list[dict[str, Any]] = []
            for function in parse_calls(message["tool_calls"]):
                number += 1
                if form.text_arguments and not isinstance(function["arguments"], str):
                    function["arguments"] = to_json(function["arguments"])
                calls.append({"id": f"call{number:05}", "type": "function", "function": function})
            turn |= {"tool_calls": calls, "content": turn["content"] or form.content}
            open_ids = [str(call["id"]) for call in calls]
        elif turn["role"] == "tool" and open_ids:
            turn["tool_call_id"] = open_ids.pop(0)
        turns.append(turn)
    return turns


def tools_of(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """A row's tools as OpenAI's API takes them, None if it has none.

    Raises:
        RowError: they cannot be read.
    """
    if not row.get("tools"):
        return None
    return [
        tool if "function" in tool else {"type": "function", "function": tool} for tool in parse_tools(row["tools"])
    ]


def uses_tools(row: Mapping[str, Any]) -> bool:
    """Whether a row has tools, calls, or what a tool returned: `chat_template(tools=True)` is for such rows."""
    return bool(row.get("tools")) or any(
        message["role"] == "tool" or message.get("tool_calls") for message in row["messages"]
    )


def served_prompt(chat: ChatTemplate, row: Mapping[str, Any], form: CallForm | None = None) -> str:
    """What a server gives the model for the row's last answer.

    Raises:
        TemplateFailed: the template refuses the conversation.
        RowError: tools that cannot be read.
    """
    messages = row["messages"][:-1]
    if all(message["role"] == "system" for message in messages):
        messages = [*messages, {"role": "user", "content": ""}]
    return chat.render(spoken(messages, form), add_generation_prompt=True, tools=tools_of(row))

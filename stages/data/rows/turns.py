"""Turns of a conversation in any form: `TurnReader().read([{"from": "human", "value": "h"}, …], "messages", media)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.data.rows.content import read_content
from stages.data.rows.values import Message, RowError, dump_json, literal, quoted, without_nulls
from stages.errors import DataError

__all__ = ["TurnReader", "check_turns"]

CALL = "function_call"
ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "system": "system",
    "tool": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "observation": "tool",
    "observations": "tool",
    CALL: CALL,
    "tool_call": CALL,
}
LOSS = ("loss", "weight", "loss_weight")  # SWIFT's, OpenAI's and LLaMA-Factory's names
OPTIONS = ("role_key", "content_key", "user_role", "assistant_role", "system_role")


class TurnReader:
    """Reads turns with the usual names for roles and fields, or with those that a dataset was registered with."""

    def __init__(self, options: Mapping[str, str | None] | None = None) -> None:
        """
        Args:
            options: SWIFT's `role_key`, `content_key`, `user_role`, `assistant_role`, `system_role`.

        Raises:
            DataError: an option of another name, or one that is not text.
        """
        given = {name: value for name, value in (options or {}).items() if value is not None}
        for name, value in given.items():
            if name not in OPTIONS or not isinstance(value, str):
                raise DataError(f"messages: {name} is {value!r:.80}. Choose from: {', '.join(OPTIONS)}, each a text")
        self._role_keys = (given["role_key"],) if "role_key" in given else ("role", "from")
        self._content_keys = (given["content_key"],) if "content_key" in given else ("content", "value")
        roles = [role for role in ("user", "assistant", "system") if f"{role}_role" in given]
        self._roles = {**ROLES, **{given[f"{role}_role"].lower(): role for role in roles}}
        self._plain = {name: role for name, role in self._roles.items() if role != CALL}
        self._keys = tuple(zip(self._role_keys, self._content_keys, strict=False))

    def read(self, value: Any, what: str, media: dict[str, list[str]]) -> list[Message]:
        """Messages with roles (OpenAI's and ShareGPT's names), or ShareGPT's pairs of human and assistant.

        Args:
            value: a list of turns, or the text of one.
            what: its name for messages.
            media: gets what content parts hold.
        """
        turns = literal(value, what)
        if not isinstance(turns, (list, tuple)) or not turns:
            raise RowError(f"{what} are a list of turns, not {turns!r:.80}", "wrong type")
        messages: list[Message] = []
        for number, turn in enumerate(turns, start=1):
            if type(turn) is dict and len(turn) == 2:  # most turns by far
                for role_key, content_key in self._keys:
                    name, content = turn.get(role_key), turn.get(content_key)
                    if type(name) is str and type(content) is str and name in self._plain:
                        messages.append({"role": self._plain[name], "content": content})
                        break
                else:
                    self._append(turn, number, messages, media)
            else:
                self._append(turn, number, messages, media)
        return messages

    def _append(self, turn: Any, number: int, messages: list[Message], media: dict[str, list[str]]) -> None:
        if not isinstance(turn, Mapping):
            raise RowError(f"message {number} is {turn!r:.80}, not an object with role and content", "wrong type")
        turn = {key: one for key, one in turn.items() if one is not None}
        role_key = next((key for key in self._role_keys if key in turn), None)
        if role_key is None:
            messages.extend(self._pair(turn, number, media))
            return
        role = self._role(turn[role_key], number)
        if role == CALL:
            calls = _read_calls(self._content(turn), f"message {number}")
            _add_calls(calls, _loss(turn, "assistant", number), messages)
            return
        message: Message = {"role": role, "content": ""}
        calls = _read_calls(turn["tool_calls"], f"tool_calls of message {number}") if turn.get("tool_calls") else []
        if calls and role != "assistant":
            raise RowError(f"message {number} is of role {role} and has tool_calls", "wrong turns")
        content = self._content(turn)
        if role == "tool" and isinstance(content, Mapping):
            message["content"] = dump_json(without_nulls(content), f"content of message {number}", "tools")
        elif not calls or content is not None:
            message["content"] = read_content(content, f"content of message {number}", media)
        if calls:
            message["tool_calls"] = dump_json(calls, f"tool_calls of message {number}", "tools")
        messages.append({**message, **_loss(turn, role, number)})

    def _role(self, name: Any, number: int) -> str:
        role = self._roles.get(name.lower().replace("-", "_")) if isinstance(name, str) else None
        if role is None:
            choices = ", ".join(self._roles)
            raise RowError(f"message {number} has role {name!r:.80}. Choose from: {choices}", "wrong turns")
        return role

    def _content(self, turn: Mapping[str, Any]) -> Any:
        return next((turn[key] for key in self._content_keys if key in turn), None)

    def _pair(self, turn: Mapping[str, Any], number: int, media: dict[str, list[str]]) -> list[Message]:
        roles = {
            role: value for name, value in turn.items() if (role := self._roles.get(str(name).lower())) is not None
        }
        if set(roles) - {"system"} != {"user", "assistant"}:
            named = f"columns {quoted(turn)}" if turn else "no columns"
            raise RowError(
                f"message {number} has neither role and content nor human and assistant: {named}", "wrong turns"
            )
        order = [role for role in ("system", "user", "assistant") if role in roles]
        return [
            {"role": role, "content": read_content(roles[role], f"{role} of message {number}", media)} for role in order
        ]


def _loss(turn: Mapping[str, Any], role: str, number: int) -> dict[str, bool]:
    """Whether the turn is learnt, where it says so."""
    if "loss_scale" in turn:
        raise RowError(f"message {number} has loss_scale: a message may have loss, true or false", "wrong type")
    name = next((name for name in LOSS if name in turn), None)
    if name is None:
        return {}
    loss = turn[name]
    if not isinstance(loss, (bool, int, float)) or loss not in (0, 1):
        raise RowError(f"{name} of message {number} is true or false, not {loss!r:.80}", "wrong type")
    if role == "assistant":
        return {"loss": bool(loss)}
    if loss and name == "loss":
        raise RowError(f"message {number} is of role {role}: only answers can have loss true", "wrong type")
    return {}


def _read_calls(value: Any, what: str) -> list[dict[str, Any]]:
    """Calls as {name, arguments}, from OpenAI's form, from that form alone, or from one call's JSON."""
    calls = literal(value, what, "tools") if value is not None else None
    calls = list(calls) if isinstance(calls, (list, tuple)) else [calls]
    read = []
    for number, call in enumerate(calls, start=1):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if isinstance(function, str):
            function = {**call, "name": function}
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
            raise RowError(f"call {number} in {what} is {call!r:.80}, not an object with name and arguments", "tools")
        arguments = function.get("arguments", function.get("parameters"))
        if isinstance(arguments, str):
            arguments = _arguments(arguments, number, what)
        else:
            arguments = without_nulls(arguments) if arguments is not None else {}
        read.append({"name": name, "arguments": arguments})
    return read


def _arguments(value: str, number: int, what: str) -> Any:
    import orjson

    try:
        return orjson.loads(value) if value.strip() else {}
    except ValueError:
        raise RowError(f"arguments of call {number} in {what} are not JSON: {value!r:.80}", "tools") from None


def _add_calls(calls: list[dict[str, Any]], loss: dict[str, bool], messages: list[Message]) -> None:
    """A turn that is only a call belongs to the assistant's turn before it, if that is where it stands."""
    import orjson

    if messages and messages[-1]["role"] == "assistant":
        before = messages[-1]
        calls = [*orjson.loads(before.get("tool_calls", "[]")), *calls]
        if loss and before.get("loss", loss["loss"]) != loss["loss"]:
            raise RowError("loss of a call differs from that of the answer it belongs to", "wrong turns")
    else:
        before = {"role": "assistant", "content": ""}
        messages.append(before)
    before["tool_calls"] = dump_json(calls, "tool_calls", "tools")
    before.update(loss)


def check_turns(messages: Sequence[Message], *, answered: bool = True) -> None:
    """An optional system turn, then pairs; pre-training text is one assistant turn alone.

    Args:
        messages: at least one.
        answered: False where rows end with a question: those that are classified.

    Raises:
        RowError: another order, or an empty answer.
    """
    expected = "user"
    start = 1 if messages[0]["role"] == "system" else 0
    if start + 1 == len(messages) and messages[start]["role"] == "assistant":
        expected = "assistant"
    for index in range(start, len(messages)):
        turn = messages[index]
        role = turn["role"]
        if expected == "assistant":
            if role == "tool" and messages[index - 1]["role"] == "tool":
                continue  # the results of calls made at once
            if role != "assistant":
                raise RowError(f"message {index + 1} is of role {role}, where an assistant's is due", "wrong turns")
            content = turn["content"]
            if (not content or content.isspace()) and "tool_calls" not in turn:
                raise RowError(f"message {index + 1}, an answer, is empty", "no answer")
            expected = "user"
        elif role == "user" or role == "tool":
            expected = "assistant"
        else:
            raise RowError(f"message {index + 1} is of role {role}, where a user's is due", "wrong turns")
    if start == len(messages) or (expected == "assistant" and answered):
        raise RowError("the last message is not an answer of the assistant", "no answer")

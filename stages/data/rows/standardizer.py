"""Reads rows of one dataset: `Standardizer(seed=42).standardize({"instruction": "I", "input": "", "output": "O"})`."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from stages.data.readers import Malformed
from stages.data.rows.columns import COLUMNS, CONVERSATIONS, MEDIA, TARGETS, Plan, plan_columns
from stages.data.rows.content import add_missing_tags, read_content, read_media
from stages.data.rows.extras import is_class, read_label, read_tools
from stages.data.rows.grounding import read_objects
from stages.data.rows.preference import append_chosen, read_rejected
from stages.data.rows.turns import TurnReader, check_turns
from stages.data.rows.values import Message, RowError, literal, quoted, text
from stages.errors import DataError

__all__ = ["Standardizer"]

KEPT_PLANS = 1024

Media = dict[str, list[str]]


class Standardizer:
    """Reads rows; keeps the state of the draw where a row has several answers."""

    def __init__(
        self, seed: int, columns: Mapping[str, str] | None = None, messages: Mapping[str, str | None] | None = None
    ) -> None:
        """
        Args:
            seed: of the draw.
            columns: what columns of other names are to be read as: `{"src": "query"}`.
            messages: how turns are written: SWIFT's `role_key`, `content_key`, `user_role`, `assistant_role`,
                `system_role`.

        Raises:
            DataError: a column is to be read as something that does not exist, an option that does not exist.
        """
        self._random = random.Random(seed)
        self._turns = TurnReader(messages)
        self._renamed = {column.lower(): _known(column, name) for column, name in (columns or {}).items()}
        self._plans: dict[tuple[str, ...], Plan] = {}
        self.never_seen = dict(columns or {})
        """Columns that are to be read as something, and that no row has had so far."""

    def standardize(self, row: Mapping[str, Any] | Malformed) -> dict[str, Any]:
        """The row with standard columns.

        Raises:
            RowError: it could not be read, columns that cannot be told apart, a missing answer, turns out of order …
        """
        if isinstance(row, Malformed):
            raise RowError(row.reason, "unreadable")
        try:
            return self._standard(row)
        except RecursionError:
            raise RowError("a value is nested too deeply", "wrong type") from None

    def _standard(self, row: Mapping[str, Any]) -> dict[str, Any]:
        columns = tuple(row)
        plan = self._plans.get(columns) or self._new_plan(columns)
        values = {target: value for target, column in plan.others if (value := row[column]) is not None}
        media: Media = {}
        messages = self._messages(row, plan, values, media)
        if plan.system is not None and (system := row[plan.system]) is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": text(system, "system")})
        if not values and not media and not plan.has_media:
            check_turns(messages)
            return {"messages": messages}
        return self._with_others(messages, values, media, has_media=plan.has_media)

    def _new_plan(self, columns: tuple[str, ...]) -> Plan:
        for column in columns:
            if not isinstance(column, str):
                raise RowError(f"a column is named {column!r:.80}, which is not text", "ambiguous columns")
        if self.never_seen:
            lower = {column.lower() for column in columns}
            self.never_seen = {name: what for name, what in self.never_seen.items() if name.lower() not in lower}
        if len(self._plans) >= KEPT_PLANS:
            self._plans.clear()
        return self._plans.setdefault(columns, plan_columns(columns, self._renamed))

    def _messages(self, row: Mapping[str, Any], plan: Plan, values: dict[str, Any], media: Media) -> list[Message]:
        if plan.conversation is not None:
            messages = self._turns.read(row[plan.conversation], "messages", media)
        elif plan.response is not None and plan.history is None:
            messages = self._pair(row, plan, values, media)
        else:
            messages = self._history(row, plan, media) + self._pair(row, plan, values, media)
        if plan.chosen is not None and plan.rejected is not None and row[plan.chosen] is not None:
            messages = append_chosen(row[plan.chosen], messages, self._turns, media)
            if (rejected := row[plan.rejected]) is not None:
                values["rejected"] = rejected
        if not messages:
            raise RowError(_no_answer(row), "no answer")
        return messages

    def _history(self, row: Mapping[str, Any], plan: Plan, media: Media) -> list[Message]:
        value = row[plan.history] if plan.history is not None else None
        turns = literal(value, "history") if value not in (None, "") else []
        if not isinstance(turns, (list, tuple)):
            raise RowError(f"history is a list of [query, response], not {value!r:.80}", "wrong type")
        messages = []
        for number, turn in enumerate(turns, start=1):
            if not isinstance(turn, (list, tuple)) or len(turn) != 2:
                raise RowError(f"turn {number} of history is {turn!r:.80}, not [query, response]", "wrong type")
            for role, one in zip(("user", "assistant"), turn, strict=True):
                messages.append({"role": role, "content": read_content(one, f"turn {number} of history", media)})
        return messages

    def _pair(self, row: Mapping[str, Any], plan: Plan, values: Mapping[str, Any], media: Media) -> list[Message]:
        query = row[plan.query] if plan.query is not None else None
        answer = row[plan.response] if plan.response is not None else None
        if plan.input is not None:
            query = _joined(query, row[plan.input])
        if type(query) is str and type(answer) is str and "label" not in values:  # most rows by far
            return [{"role": "user", "content": query}, {"role": "assistant", "content": answer}]
        is_classified = "label" in values and is_class(values["label"])
        if is_classified and query is None:
            query, answer = answer, None  # {"text": …, "label": 2}
        messages = self._said("user", query, "query", media) if query is not None else []
        if answer is None:
            if is_classified or plan.chosen is not None:
                return messages
            raise RowError(_no_answer(row), "no answer")
        if isinstance(answer, (list, tuple)) and answer and not isinstance(answer[0], Mapping):
            answer = self._random.choice(answer)
            if not isinstance(answer, str):
                answer = text(answer, "one of several responses")
        return messages + self._said("assistant", answer, "response", media)

    def _said(self, role: str, value: Any, what: str, media: Media) -> list[Message]:
        """One turn, or the turns of which a column holds a list."""
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping) and "type" not in value[0]:
            return self._turns.read(value, what, media)
        return [{"role": role, "content": read_content(value, what, media)}]

    def _with_others(
        self, messages: list[Message], values: Mapping[str, Any], media: Media, *, has_media: bool
    ) -> dict[str, Any]:
        """The conversation and the columns beside it that later stages know."""
        check_turns(messages, answered="label" not in values or not is_class(values["label"]))
        rejected = read_rejected(values, messages, self._turns, media)
        for name in MEDIA:
            if values.get(name) not in (None, [], ""):
                if name in media:
                    raise RowError(f"{name} stand in the turns and in the column {name}: keep one of them", "media")
                media[name] = read_media(values[name], name)
        if media or has_media:
            add_missing_tags(messages, media)
        others: dict[str, Any] = {"messages": messages, "rejected_response": rejected}
        if "label" in values:
            others["label"] = read_label(values["label"])
        if "tools" in values:
            others["tools"] = read_tools(values["tools"])
        others.update(media)
        if values.get("objects") not in (None, [], ""):
            others["objects"] = read_objects(values["objects"], messages, len(media.get("images", ())))
        return {name: value for name, value in others.items() if value is not None}


def _joined(instruction: Any, given: Any) -> Any:
    """Alpaca's question: the input stands below the instruction."""
    if type(instruction) is str and type(given) is str:
        return f"{instruction}\n{given}" if instruction and given else instruction or given
    parts = [part for part in (instruction, given) if part is not None and part != ""]
    if len(parts) == 2:
        return f"{text(instruction, 'instruction')}\n{text(given, 'input')}"
    return parts[0] if parts else ""


def _no_answer(row: Mapping[str, Any]) -> str:
    named = f"columns {quoted(row)}" if row else "no columns"
    return f"no response: it has {named}. Name the column one of {', '.join(COLUMNS['response'])}"


def _known(column: str, name: str) -> str:
    if not isinstance(name, str) or name.lower() not in (*TARGETS, *CONVERSATIONS):
        raise DataError(
            f"columns: {column!r} is to be read as {name!r:.80}. Choose from: {', '.join(COLUMNS)}, messages"
        )
    return name.lower()

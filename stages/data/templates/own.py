"""The model's own chat template, in Jinja: `OwnTemplate(chat, added_tokens, settings).render(row)`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from stages.data.chat_template import ChatTemplate, Span, TemplateFailed
from stages.data.loss_scale import LossScale
from stages.data.rows import RowError
from stages.data.spans import SpanFinder
from stages.data.templates.conversation import CALL_FORMS, CallForm, spoken, tools_of
from stages.data.templates.detect import CALLS
from stages.data.templates.jinja import with_system
from stages.data.templates.rendered import Piece, Rendered, TemplateSettings, weighed
from stages.data.templates.tools import parse_calls, to_json

__all__ = ["OwnTemplate"]

HINT = "name another with `--template`, such as chatml"
# What the probes call.
CALLED = "is_prime"


class OwnTemplate:
    """Writes rows with Jinja, and finds what is learnt in the text. Tools and calls are written as the model's own.

    Attributes:
        name: `jinja`.
        turn_end: what ends an answer; empty if nothing does.
    """

    name = "jinja"

    def __init__(self, own: ChatTemplate, added_tokens: Iterable[str], settings: TemplateSettings) -> None:
        """Tries the template out.

        Raises:
            ArgumentsError: no loss scale has the name.
            ModelError: the template fails on a question and an answer.
            UserError: it has no place for the system message given.
        """
        self._own = own
        self._finder = SpanFinder(own, added_tokens, settings.system)
        self._system = settings.system
        self.scale = LossScale.parse(settings.loss_scale)
        self.turn_end = self._finder.turn_end

    def render(self, row: Mapping[str, Any], *, answer: str | None = None) -> Rendered:
        """The row as text; see `Template`."""
        messages = row["messages"]
        if answer is not None:
            messages = [*messages[:-1], {"role": "assistant", "content": answer}]
        text, spans = self._finder.render(self._spoken(messages), tools_of(row))
        self._check_all_there(text, row, messages)
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if len(spans) != len(turns):
            raise RowError(f"the chat template marks {len(spans)} answers where there are {len(turns)}")
        return weighed(list(self._pieces(text, spans, turns)), messages, self.scale)

    def prompt(self, row: Mapping[str, Any]) -> str:
        """What the model is given for the last answer; see `Template`."""
        return self._finder.prompt(self._spoken(row["messages"]), tools_of(row))

    def chat_template(self, *, tools: bool = False) -> str | None:
        """The Jinja for an export; see `Template`."""
        turn = self._finder.system_turn
        return None if turn is None else with_system(self._own.text, turn, in_parts=self._own.reads_parts("system"))

    def _spoken(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        called = any(message.get("tool_calls") for message in messages)
        return spoken(messages, self._call_form if called else None)

    @cached_property
    def _call_form(self) -> CallForm:
        """The form of calls in which the template writes them."""
        asked, called = CALLS[2]["messages"][:2]
        for form in CALL_FORMS:
            text = self._tried(spoken([asked, called], form), CALLS[2])
            without = self._tried([asked, {"role": "assistant", "content": "No."}], CALLS[2])
            if text.count(CALLED) > without.count(CALLED):
                return form
        raise RowError(f"the chat template has no place for tool_calls: {HINT}")

    @cached_property
    def _takes_tools(self) -> bool:
        return CALLED in self._tried(spoken(CALLS[0]["messages"]), CALLS[0])

    def _tried(self, messages: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> str:
        try:
            return self._own.render(messages, tools=tools_of(row))
        except TemplateFailed:
            return ""

    def _pieces(self, text: str, spans: Sequence[Span], turns: Sequence[int]) -> Iterator[Piece]:
        position = 0
        for (start, end), message in zip(spans, turns, strict=True):
            if start < position:
                raise RowError("the chat template does not end an answer before the next message begins")
            yield Piece(text[position:start])
            ending = self._finder.turn_end if message == turns[-1] else self._finder.inner_end
            answer = text[start:end].removesuffix(ending)
            yield Piece(answer, "answer", message)
            yield Piece(text[start + len(answer) : end], "end", message)
            position = end
        yield Piece(text[position:])

    def _check_all_there(self, text: str, row: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> None:
        """What a template leaves out in silence would be lost."""
        if row.get("tools") and not self._takes_tools:
            raise RowError(f"the chat template has no place for tools: {HINT}")
        called: Counter[str] = Counter()
        for number, message in enumerate(messages, start=1):
            if message["role"] == "tool" and not _holds(text, message["content"]):
                raise RowError(f"the chat template leaves out what message {number}, of a tool, says: {HINT}")
            for call in parse_calls(message.get("tool_calls") or []):
                called[call["name"]] += 1
                if text.count(call["name"]) < called[call["name"]]:
                    raise RowError(f"the chat template leaves out the tool_calls of message {number}: {HINT}")


def _holds(text: str, content: str) -> bool:
    """Whether it is there as it is, or as JSON."""
    content = content.strip()
    return content in text or to_json(content)[1:-1] in text

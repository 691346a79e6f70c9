"""The model's own chat template, in Jinja: `OwnTemplate(chat, added_tokens, settings).render(row)`."""

from __future__ import annotations

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
        for form in CALL_FORMS:
            try:
                text = self._own.render(spoken(CALLS[2]["messages"][:2], form), tools=tools_of(CALLS[2]))
            except TemplateFailed:
                continue
            if "is_prime" in text and "7" in text.partition("is_prime")[2]:
                return form
        raise RowError("the chat template has no place for tool_calls: name another with `--template`, such as chatml")

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
        hint = "name another with `--template`, such as chatml"
        for tool in tools_of(row) or []:
            if tool.get("function", tool)["name"] not in text:
                raise RowError(f"the chat template has no place for tools: {hint}")
        for number, message in enumerate(messages, start=1):
            if message["role"] == "tool" and not _holds(text, message["content"]):
                raise RowError(f"the chat template leaves out what message {number}, of a tool, says: {hint}")
            for call in parse_calls(message.get("tool_calls") or []):
                if call["name"] not in text:
                    raise RowError(f"the chat template leaves out the tool_calls of message {number}: {hint}")


def _holds(text: str, content: str) -> bool:
    """Whether it is there as it is, or as JSON."""
    content = content.strip()
    return content in text or to_json(content)[1:-1] in text

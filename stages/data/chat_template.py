"""Renders conversations with a tokenizer's Jinja chat template, as transformers' `apply_chat_template` does.

`ChatTemplate(text, {"eos_token": "</s>"}).render([{"role": "user", "content": "Hello"}], add_generation_prompt=True)`
It is a module of its own because importing transformers takes seconds, and a template needs only Jinja.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

__all__ = ["PINNED_DATE", "ChatTemplate", "Span", "TemplateFailed"]

Span = tuple[int, int]
Message = Mapping[str, Any]

# Some templates write today's date; tokens must not change from one day to the next.
PINNED_DATE = date(2024, 7, 26)

# Unicode noncharacters, which no text has, around what stands between {% generation %} and {% endgeneration %}.
OPEN, CLOSE = "\ufdd0", "\ufdd1"


class TemplateFailed(ValueError):
    """What the template, or Jinja, says against a conversation."""


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template, and the special tokens that it may name.

    Attributes:
        text: Jinja.
        special_tokens: bos_token, eos_token … by name.
    """

    text: str
    special_tokens: Mapping[str, str]

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, tools: Sequence[Any] | None = None
    ) -> str:
        """The conversation as text; with `add_generation_prompt`, as the prompt for the next answer.

        Raises:
            TemplateFailed: the template refuses the conversation, or is not Jinja.
        """
        return self._render(messages, add_generation_prompt, tools).replace(OPEN, "").replace(CLOSE, "")

    def render_marked(
        self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None
    ) -> tuple[str, list[Span]]:
        """The conversation as text, and what the template itself marks as the assistant's.

        Raises:
            TemplateFailed: as `render`.
        """
        pieces = re.split(f"([{OPEN}{CLOSE}])", self._render(messages, False, tools))
        text, spans = "", []
        for piece in pieces:
            if piece == OPEN:
                spans.append((len(text), len(text)))
            elif piece == CLOSE:
                spans[-1] = (spans[-1][0], len(text))
            else:
                text += piece
        return text, spans

    def reads_parts(self, role: str) -> bool:
        """Whether what a role says is given to the template as a list of parts."""
        return False

    @property
    def marks_generation(self) -> bool:
        """Whether the template marks what the assistant writes."""
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.text) is not None

    @property
    def asks_for_the_date(self) -> bool:
        """Whether it may write a date, which is pinned."""
        return "strftime_now" in self.text

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool, tools: Sequence[Any] | None) -> str:
        import jinja2

        try:
            return self._compiled.render(
                messages=[dict(message) for message in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError, LookupError) as error:
            raise TemplateFailed(f"{type(error).__name__}: {error}") from error

    @cached_property
    def _compiled(self) -> jinja2.Template:
        return _environment().from_string(self.text)


def _environment() -> jinja2.Environment:
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import CallBlock, Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The block in which a template writes what the assistant says."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's own protocol

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller: Any) -> str:
            return f"{OPEN}{caller()}{CLOSE}"

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = PINNED_DATE.strftime
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)

"""What a template gives: `Rendered(text, spans)`, and what every template can do.

Spans are ranges of characters; the encoder finds the tokens that they cover.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

__all__ = ["Rendered", "Span", "Template", "TemplateSettings"]


class Span(NamedTuple):
    """Characters of the text that are learnt, and how strongly."""

    start: int
    end: int
    weight: float


class Rendered(NamedTuple):
    """A conversation as text. The spans are in order and disjoint, each weight is above 0; the rest is not learnt."""

    text: str
    spans: list[Span]


@dataclass(frozen=True)
class TemplateSettings:
    """SWIFT's parameters, as a template needs them.

    Attributes:
        template: a registered name; None for the model's own.
        system: for rows without one; empty for none, None for the template's own.
        tools_prompt: how tools are written; None for the template's own way.
        loss_scale: as `LossScale.parse` takes it.
        use_chat_template: false joins query and response, and writes nothing else.
        template_backend: `jinja`: always the tokenizer's own template.
    """

    template: str | None = None
    system: str | None = None
    tools_prompt: str | None = None
    loss_scale: str = "default"
    use_chat_template: bool = True
    template_backend: Literal["swift", "jinja"] = "swift"


class Template(Protocol):
    """Writes standard rows as text."""

    @property
    def name(self) -> str:
        """The registered one, or `jinja` for the model's own."""

    @property
    def turn_end(self) -> str:
        """What ends an answer; empty if nothing does."""

    def render(self, row: Mapping[str, Any], *, answer: str | None = None) -> Rendered:
        """The row as text.

        Args:
            row: a standard one.
            answer: instead of what the last assistant turn says, such as the rejected response.

        Raises:
            RowError: the template cannot write it.
        """

    def prompt(self, row: Mapping[str, Any]) -> str:
        """What the model is given at serving time for the last answer: everything before it.

        Raises:
            RowError: the template cannot write it.
        """

    def chat_template(self, *, tools: bool = False) -> str | None:
        """The Jinja that an exported tokenizer carries so that serving equals training.

        Args:
            tools: whether rows have tools or tool turns.

        Returns:
            None if the tokenizer's own does already, or nothing at all is to be written around a conversation.
        """

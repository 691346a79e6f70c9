"""What a template gives: `Rendered(text, spans)`, and what every template can do.

Spans are ranges of characters; the encoder finds the tokens that they cover.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from stages.data.loss_scale import LossScale

__all__ = ["Piece", "Rendered", "Span", "Template", "TemplateSettings", "weighed"]


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


class Piece(NamedTuple):
    """A part of a conversation's text.

    Attributes:
        text: as it is written.
        kind: `answer`: what an assistant says, `end`: what ends it, `other`: what the model is given.
        message: which message an answer, or its end, belongs to.
    """

    text: str
    kind: Literal["answer", "end", "other"] = "other"
    message: int = -1


def weighed(pieces: Sequence[Piece], messages: Sequence[Mapping[str, Any]], scale: LossScale) -> Rendered:
    """The pieces joined, and what of them is learnt.

    An answer is learnt as the scale's base says, unless its message has a `loss` of its own; its end is learnt with it.
    """
    last = max((piece.message for piece in pieces if piece.kind == "answer"), default=-1)
    text: list[str] = []
    spans: list[Span] = []
    position = 0
    for piece in pieces:
        for start, end, weight in _weights(piece, messages, last, scale):
            if weight > 0 and start < end:
                _add(spans, Span(position + start, position + end, weight))
        text.append(piece.text)
        position += len(piece.text)
    return Rendered("".join(text), spans)


def _weights(
    piece: Piece, messages: Sequence[Mapping[str, Any]], last: int, scale: LossScale
) -> Sequence[tuple[int, int, float]]:
    if piece.kind == "other":
        return [(0, len(piece.text), 1.0)] if scale.base == "all" else []
    told = messages[piece.message].get("loss")
    if not (told if told is not None else scale.base != "last_round" or piece.message == last):
        return []
    if piece.kind == "end":
        return [(0, len(piece.text), 1.0)]
    query = messages[piece.message - 1]["content"] if piece.message > 0 else ""
    return scale.weigh(piece.text, query)


def _add(spans: list[Span], span: Span) -> None:
    """A span, joined with the one before it where they are one."""
    if spans and spans[-1].end == span.start and spans[-1].weight == span.weight:
        span = Span(spans.pop().start, span.end, span.weight)
    spans.append(span)

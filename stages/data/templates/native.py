"""Writes rows with the parts of a registered template: `NativeTemplate(meta, tokens, settings).render(row)`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from stages.data.loss_scale import LossScale
from stages.data.rows import RowError
from stages.data.templates.meta import SYSTEM, TemplateMeta, common_start
from stages.data.templates.rendered import Rendered, Span, TemplateSettings
from stages.errors import ArgumentsError

__all__ = ["NativeTemplate"]

Message = Mapping[str, Any]


class Piece(NamedTuple):
    """Text of one kind: `other`, `answer`, `end` (of an answer) or `result` (of a tool); and of which message."""

    text: str
    kind: str = "other"
    message: int = -1


class NativeTemplate:
    """A registered template, bound to a tokenizer's tokens.

    Attributes:
        name: of the template.
        turn_end: what ends an answer, without white space at its end.
    """

    def __init__(self, meta: TemplateMeta, special_tokens: Mapping[str, str], settings: TemplateSettings) -> None:
        """Fills in the tokens.

        Raises:
            ArgumentsError: a system message where the template has no place for one, an unknown loss scale.
        """
        if settings.system and not meta.takes_system:
            raise ArgumentsError(
                f"template {meta.name} has no place for a system message: drop `--system {settings.system!r:.40}`"
            )
        self.meta = meta
        self.settings = settings
        self.name = meta.name
        self.scale = LossScale.parse(settings.loss_scale)
        self._tokens = special_tokens
        self._suffix = self.fill(meta.text("suffix"))
        self._sep = self.fill(meta.text("chat_sep"))
        self.turn_end = self._suffix.rstrip()
        # What is learnt of them: all, if it is nothing but white space.
        self._end = self.turn_end or self._suffix
        self._inner_end = common_start(self._suffix, self._sep).rstrip() or common_start(self._suffix, self._sep)
        self._before, self._after, self._asking = (self.fill(part) for part in meta.asked())
        self._prefix = self.fill(meta.text("prefix"))
        self._default = meta.default_system if settings.system is None else settings.system or None
        self._begin = self.begin(self._default)
        self._fast = self.scale.plain and self.scale.base == "default" and self.simple

    @property
    def simple(self) -> bool:
        """Whether the parts say all, so that the short way can be gone."""
        return type(self) is NativeTemplate and self.meta.system_query is None

    def fill(self, part: str) -> str:
        """A part with the tokenizer's tokens."""
        for name, key in (("{{BOS}}", "bos_token"), ("{{EOS}}", "eos_token")):
            if name in part:
                part = part.replace(name, self._tokens.get(key, ""))
        return part

    def render(self, row: Mapping[str, Any], *, answer: str | None = None) -> Rendered:
        """The row as text; see `Template`."""
        messages: Sequence[Message] = row["messages"]
        if answer is not None:
            messages = [*messages[:-1], {"role": "assistant", "content": answer}]
        if self._fast and not row.get("tools"):
            quick = self._render_plain(messages)
            if quick is not None:
                return quick
        return self._weighed(list(self.pieces(messages, row.get("tools"))), messages)

    def prompt(self, row: Mapping[str, Any]) -> str:
        """What the model is given for the last answer; see `Template`."""
        messages = row["messages"]
        pieces = list(self.pieces(messages, row.get("tools")))
        last = max(index for index, piece in enumerate(pieces) if piece.kind == "answer")
        return "".join(piece.text for piece in pieces[:last])

    def begin(self, system: str | None) -> str:
        """What stands before the first question."""
        if system is None or self.meta.system_query is not None:
            return self._prefix
        if self.meta.system_prefix is None:
            raise RowError(f"template {self.name} has no place for its system message")
        return self.fill(self.meta.text("system_prefix")).replace(SYSTEM, self.content("system", system))

    def content(self, role: str, content: str) -> str:
        """What a message says, as it is written."""
        return content.strip() if role in self.meta.trimmed else content

    def answer(self, messages: Sequence[Message], index: int) -> str:
        """What an assistant's turn says, as it is written."""
        return self.content("assistant", messages[index]["content"])

    def chat_template(self, *, tools: bool = False) -> str | None:
        """The Jinja for an export; see `Template`."""
        return None

    def _render_plain(self, messages: Sequence[Message]) -> Rendered | None:
        """Questions and answers without anything else, which is most rows; None if it is not one."""
        if len(messages) > 3 and self.meta.chat_sep is None:
            return None
        text, first = self._begin, 0
        if messages[0]["role"] == "system":
            text, first = self.begin(messages[0]["content"]), 1
        trimmed = self.meta.trimmed
        spans = []
        last = len(messages) - 1
        asked = False
        for index in range(first, last + 1):
            message = messages[index]
            role, content = message["role"], message["content"]
            if role in trimmed:
                content = content.strip()
            if role == "user" and not asked:
                text = f"{text}{self._before}{content}{self._after}{self._asking}"
                asked = True
            elif role == "assistant" and asked and len(message) == 2:
                start = len(text)
                if index == last:
                    text = f"{text}{content}{self._suffix}"
                    spans.append(Span(start, start + len(content) + len(self._end), 1.0))
                else:
                    text = f"{text}{content}{self._sep}"
                    spans.append(Span(start, start + len(content) + len(self._inner_end), 1.0))
                asked = False
            else:
                return None
        return Rendered(text, spans)

    def pieces(self, messages: Sequence[Message], tools: str | None) -> Iterable[Piece]:
        """The conversation piece by piece.

        Raises:
            RowError: there is no way to write it.
        """
        system = self._default
        first = 0
        if messages[0]["role"] == "system":
            system, first = messages[0]["content"], 1
        turns = messages[first:]
        if turns and turns[0]["role"] == "assistant":
            turns = [{"role": "user", "content": ""}, *turns]
        offset = len(messages) - len(turns)
        yield Piece(self.begin(system))
        if self.meta.chat_sep is None and len(turns) > 2:
            raise RowError(f"template {self.name} writes one question and one answer, not {len(turns)} messages")
        users = [index for index, turn in enumerate(turns) if turn["role"] == "user"]
        system_at = users[0 if self.meta.system_in == "first" else -1] if users else -1
        last = len(turns) - 1
        for index, turn in enumerate(turns):
            if turn["role"] == "assistant":
                yield Piece(self.answer(turns, index), "answer", index + offset)
                end, whole = (self._end, self._suffix) if index == last else (self._inner_end, self._sep)
                yield Piece(end, "end", index + offset)
                yield Piece(whole[len(end) :])
            else:
                query = self.content(turn["role"], turn["content"])
                if system is not None and self.meta.system_query is not None and index == system_at:
                    query = self.meta.system_query.replace(SYSTEM, system) + query
                yield Piece(f"{self._before}{query}{self._after}{self._asking}")

    def _weighed(self, pieces: Sequence[Piece], messages: Sequence[Message]) -> Rendered:
        """The pieces joined, and what of them is learnt."""
        last = max((piece.message for piece in pieces if piece.kind == "answer"), default=-1)
        text: list[str] = []
        spans: list[Span] = []
        position = 0
        for piece in pieces:
            for start, end, weight in self._weights(piece, messages, last):
                if weight > 0 and start < end:
                    _add(spans, position + start, position + end, weight)
            text.append(piece.text)
            position += len(piece.text)
        return Rendered("".join(text), spans)

    def _weights(self, piece: Piece, messages: Sequence[Message], last: int) -> Sequence[tuple[int, int, float]]:
        base = self.scale.base
        if piece.kind not in ("answer", "end"):
            return [(0, len(piece.text), float(base == "all"))]
        told = messages[piece.message].get("loss")
        trained = told if told is not None else base != "last_round" or piece.message == last
        if not trained:
            return []
        if piece.kind == "end":
            return [(0, len(piece.text), 1.0)]
        query = messages[piece.message - 1]["content"] if piece.message > 0 else ""
        return self.scale.weigh(piece.text, query)


def _add(spans: list[Span], start: int, end: int, weight: float) -> None:
    """A span, joined with the one before it where they are one."""
    if spans and spans[-1].end == start and spans[-1].weight == weight:
        spans[-1] = Span(spans[-1].start, end, weight)
    else:
        spans.append(Span(start, end, weight))

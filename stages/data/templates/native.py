"""Writes rows with the parts of a registered template: `NativeTemplate(meta, tokens, settings).render(row)`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stages.data.loss_scale import LossScale
from stages.data.rows import RowError
from stages.data.templates.meta import SYSTEM, TemplateMeta, common_start
from stages.data.templates.rendered import Piece, Rendered, Span, TemplateSettings, weighed
from stages.data.templates.tools import find_tools_prompt, parse_calls, parse_tools
from stages.errors import ArgumentsError

if TYPE_CHECKING:
    from stages.data.chat_template import ChatTemplate

__all__ = ["NativeTemplate"]

Message = Mapping[str, Any]


class NativeTemplate:
    """A registered template, bound to a tokenizer's tokens.

    Attributes:
        meta: its parts.
        name: of the template.
        turn_end: what ends an answer, without white space at its end.
        system: for rows without one; None for none.
        tools_prompt: how tools are written.
    """

    def __init__(
        self,
        meta: TemplateMeta,
        special_tokens: Mapping[str, str],
        settings: TemplateSettings,
        own: ChatTemplate | None = None,
    ) -> None:
        """Fills in the tokens.

        Args:
            meta: the parts.
            special_tokens: bos_token, eos_token … by name.
            settings: the user's.
            own: the model's chat template, if it has one.

        Raises:
            ArgumentsError: a system message where there is no place for one; a loss scale, a tools prompt or a token
                that is not there.
        """
        if settings.system and not meta.takes_system:
            raise ArgumentsError(
                f"template {meta.name} has no place for a system message: drop `--system {settings.system!r:.40}`"
            )
        self.meta = meta
        self.name = meta.name
        self.scale = LossScale.parse(settings.loss_scale)
        self.system = meta.default_system if settings.system is None else settings.system or None
        self.tools_prompt = find_tools_prompt(settings.tools_prompt or meta.default_tools_prompt)
        self.settings = settings
        self._own = own
        self._tokens = special_tokens
        self._suffix = self.fill(meta.text("suffix"))
        self._sep = self.fill(meta.text("chat_sep"))
        self._before, self._after, self._asking = (self.fill(part) for part in meta.asked())
        self._tool_parts = tuple(self.fill(part) for part in meta.asked("tool_prompt"))
        self._prefix = self.fill(meta.text("prefix"))
        self.turn_end = self._suffix.rstrip()
        # What is learnt of it: all, if it is nothing but white space.
        self._end = self.turn_end or self._suffix
        self._inner_end = self.inner_end(self._before)
        self._begin = self.begin(self.system)
        self._fast = self.scale.plain and self._simple()

    def _simple(self) -> bool:
        """Whether the short way to write a row can be gone."""
        return self.meta.thinking is None and self.meta.system_query is None and not self.meta.answer_prefix

    def fill(self, part: str) -> str:
        """A part with the tokenizer's tokens.

        Raises:
            ArgumentsError: the tokenizer lacks one.
        """
        for name, key in (("{{BOS}}", "bos_token"), ("{{EOS}}", "eos_token")):
            if name in part:
                if key not in self._tokens:
                    raise ArgumentsError(f"template {self.meta.name} needs a {key}, which the tokenizer does not have")
                part = part.replace(name, self._tokens[key])
        return part

    def render(self, row: Mapping[str, Any], *, answer: str | None = None) -> Rendered:
        """The row as text; see `Template`."""
        messages: Sequence[Message] = row["messages"]
        if answer is not None:
            messages = [*messages[:-1], {"role": "assistant", "content": answer}]
        if self._fast and not row.get("tools") and (quick := self._quick(messages)) is not None:
            return quick
        return weighed(list(self.pieces(messages, row.get("tools"))), messages, self.scale)

    def prompt(self, row: Mapping[str, Any]) -> str:
        """What the model is given for the last answer; see `Template`."""
        pieces = list(self.pieces(row["messages"], row.get("tools")))
        last = max(index for index, piece in enumerate(pieces) if piece.kind == "answer")
        return "".join(piece.text for piece in pieces[:last])

    def chat_template(self, *, tools: bool = False) -> str | None:
        """The Jinja for an export; see `Template`."""
        from stages.data.templates.export import exported_template

        return exported_template(self, self._own, tools=tools)

    def begin(self, system: str | None) -> str:
        """What stands before the first question.

        Raises:
            RowError: there is no place for a system message.
        """
        if system is not None and not self.meta.takes_system:
            raise RowError(f"template {self.name} has no place for a system message")
        if system is None or self.meta.system_query is not None or not (system or self.meta.empty_system):
            return self._prefix
        return self.fill(self.meta.text("system_prefix")).replace(SYSTEM, self._trimmed("system", system))

    def inner_end(self, following: str) -> str:
        """What is learnt behind an answer that others follow.

        Args:
            following: how the next message begins.
        """
        coming = self._sep + following
        ends = [end for end in (self._end, *self.meta.stop_words) if end and coming.startswith(end)]
        common = common_start(self._suffix, self._sep)
        return max(ends, key=len, default=common.rstrip() or common)

    def pieces(self, messages: Sequence[Message], tools: str | None) -> Iterator[Piece]:
        """The conversation piece by piece.

        Raises:
            RowError: there is no way to write it.
        """
        system, turns = (self.system, messages)
        if messages[0]["role"] == "system":
            system, turns = messages[0]["content"], messages[1:]
        if tools:
            if not self.meta.takes_system:
                raise RowError(f"template {self.name} has no place for tools, which are written as a system message")
            system = self.tools_prompt.system(parse_tools(tools), system)
        if turns and turns[0]["role"] == "assistant":
            turns = [{"role": "user", "content": ""}, *turns]
        if self.meta.chat_sep is None and len(turns) > 2:
            raise RowError(f"template {self.name} writes one question and one answer, not {len(turns)} messages")
        yield Piece(self.begin(system))
        yield from _Turns(self, turns, system, len(messages) - len(turns)).pieces()

    def query(self, turn: Message, system: str | None) -> str:
        """What a question says, with the system message where it belongs there."""
        query: str = self._trimmed(turn["role"], turn["content"])
        if system is None or self.meta.system_query is None:
            return query
        if self.meta.trims_query:
            return f"{self.meta.system_query.replace(SYSTEM, system)}{turn['content']}".strip()
        return self.meta.system_query.replace(SYSTEM, system) + query

    def answer(self, turn: Message, past: bool, last: bool) -> str:
        """What an answer says, with its calls."""
        content: str = self._trimmed("assistant", turn["content"] or "")
        if self.meta.thinking is not None:
            content = self.meta.thinking.write(content, past, last)
        if calls := turn.get("tool_calls"):
            content = self.tools_prompt.calls(content, parse_calls(calls), thinks=self.meta.thinking is not None)
        return content

    def parts(self, role: str) -> tuple[str, str]:
        """What stands before and after a question, or what a tool returns."""
        if role == "tool" and self.tools_prompt.result is None:
            return self._tool_parts[0], self._tool_parts[1]
        return self._before, self._after

    def asking(self, role: str, last: bool) -> str:
        """What asks for the answer to it."""
        asking = self._tool_parts[2] if role == "tool" and self.tools_prompt.result is None else self._asking
        return asking + self.meta.thinking.opens if last and self.meta.thinking is not None else asking

    def sep(self, last: bool) -> str:
        """What stands between an answer and the next message, or after the last answer."""
        return self._suffix if last else self._sep

    def _trimmed(self, role: str, content: str) -> str:
        return content.strip() if role in self.meta.trimmed else content

    def _quick(self, messages: Sequence[Message]) -> Rendered | None:
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
            elif role == "assistant" and asked and (len(message) == 2 or not _more(message)):
                start = len(text)
                if index == last:
                    text = f"{text}{content}{self._suffix}"
                    spans.append(Span(start, start + len(content) + len(self._end), 1.0))
                else:
                    text = f"{text}{content}{self._sep}"
                    spans.append(Span(start, start + len(content) + len(self._inner_end), 1.0))
            else:
                return None
            asked = not asked
        if asked:
            return None
        if self.scale.base != "default":
            spans = spans[-1:] if self.scale.base == "last_round" else [Span(0, len(text), 1.0)]
        return Rendered(text, spans)


class _Turns:
    """Writes the turns after the system message."""

    def __init__(self, template: NativeTemplate, turns: Sequence[Message], system: str | None, offset: int) -> None:
        self._template = template
        self._turns = turns
        self._system = system
        self._offset = offset
        users = [index for index, turn in enumerate(turns) if turn["role"] == "user"]
        self._last_user = users[-1] if users else -1
        self._system_at = -1 if not users else users[0] if template.meta.system_in == "first" else users[-1]
        # Whether the assistant's turn goes on with what a tool returned, and how much of a message stands already.
        self._open = False
        self._written = 0

    def pieces(self) -> Iterator[Piece]:
        """All turns; a run of what tools return may be one of them."""
        index = 0
        while index < len(self._turns):
            turn = self._turns[index]
            if turn["role"] == "assistant":
                yield from self._answer(index)
                index += 1
            elif self._open:
                yield from self._observation(index)
                index += 1
            else:
                until = self._run(index)
                yield from self._question(index, until)
                index = until

    def _run(self, index: int) -> int:
        """Where the next message after this one, or after this run of what tools return, begins."""
        until = index + 1
        if self._turns[index]["role"] == "tool" and self._template.tools_prompt.result is not None:
            while until < len(self._turns) and self._turns[until]["role"] == "tool":
                until += 1
        return until

    def _question(self, index: int, until: int) -> Iterator[Piece]:
        turn = self._turns[index]
        before, after = self._template.parts(turn["role"])
        yield Piece(before[self._written :])
        self._written = 0
        if turn["role"] == "tool":
            result = self._template.tools_prompt.result or "{{RESULT}}"
            said = (self._template.query(one, None) for one in self._turns[index:until])
            yield Piece("\n".join(result.replace("{{RESULT}}", one) for one in said))
        else:
            yield Piece(self._template.query(turn, self._system if index == self._system_at else None))
        yield Piece(after)

    def _observation(self, index: int) -> Iterator[Piece]:
        """What a tool returned, in the assistant's own turn."""
        if self._turns[index - 1]["role"] == "tool":
            before = "" if self._turns[index - 1]["content"].endswith("\n") else "\n"
            yield Piece(before + self._template.tools_prompt.observation)
        yield Piece(self._turns[index]["content"])

    def _answer(self, index: int) -> Iterator[Piece]:
        template, turn, last = self._template, self._turns[index], index == len(self._turns) - 1
        message = index + self._offset
        if not self._open:
            yield Piece(template.asking(self._turns[index - 1]["role"], last))
        prefix = "" if self._open else template.meta.answer_prefix
        # What goes on after a tool is no answer of its own, and opens no thought.
        content = prefix + template.answer(turn, self._open or index < self._last_user, last and not self._open)
        yield Piece(content, "answer", message)
        following = None if last else self._turns[index + 1]["role"]
        observation = template.tools_prompt.observation
        self._open = following == "tool" and observation != "" and content.endswith(observation)
        if self._open:
            return
        sep = template.sep(last)
        end = template.inner_end(template.parts(str(following))[0]) if following else sep.rstrip() or sep
        yield Piece(end, "end", message)
        yield Piece(sep[len(end) :])
        self._written = max(len(end) - len(sep), 0)


def _more(message: Message) -> bool:
    """Whether a message says more than its role and content."""
    return any(value is not None for name, value in message.items() if name not in ("role", "content"))

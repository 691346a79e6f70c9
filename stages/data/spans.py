"""Finds in a rendered conversation what the assistant has to write itself: `SpanFinder(template, special).render(…)`.

The trained part of a turn begins where the prompt for it ends, which is what `apply_chat_template` gives with
`add_generation_prompt=True`, and ends with the token that ends the turn. Nothing is assumed of how a template looks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stages.data.chat_template import ChatTemplate, Span, TemplateFailed
from stages.data.rows import RowError
from stages.errors import ModelError, UserError

__all__ = ["SpanFinder"]

Message = Mapping[str, Any]

QUESTIONS = ("What is seven?", "What is eight?")
ANSWERS = ("Seven is prime.", "Eight is even.")
SYSTEM = "Speak of numbers."


class SpanFinder:
    """Renders conversations with one template.

    Attributes:
        turn_end: what the template writes after the last answer, without white space at its end; empty if nothing.
        inner_end: the same after an answer that others follow.
        system_turn: what the system turn says that is put before conversations without one; None if none is.
    """

    def __init__(self, template: ChatTemplate, special: Iterable[str], system: str | None = None) -> None:
        """Tries the template out.

        Args:
            template: the model's.
            special: the tokenizer's added tokens.
            system: for conversations without a system turn; empty for none even where the template has its own.

        Raises:
            ModelError: the template fails on a plain question and answer, or leaves the answer out.
            UserError: it has no place for the system text given.
        """
        self._template = template
        self._special = re.compile(
            "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True)) or "(?!)"
        )
        question = {"role": "user", "content": QUESTIONS[0]}
        try:
            text = template.render([question, {"role": "assistant", "content": ANSWERS[0]}])
        except TemplateFailed as error:
            raise ModelError(f"the model's chat template fails on a question and its answer: {error}") from error
        if text.count(ANSWERS[0]) != 1:
            raise ModelError(f"the model's chat template does not write the answer as it is: {text!r:.300}")
        self.turn_end = text.partition(ANSWERS[0])[2].rstrip()
        self.inner_end = self._inner_end()
        self._system = self._system_turn(system, question)
        self.system_turn = str(self._system[0]["content"]) if self._system else None

    def render(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> tuple[str, list[Span]]:
        """The conversation as text, and the character ranges of the assistant's parts, in order.

        The text begins with the prompt for the last answer, even where the template writes a finished conversation
        in another way: what is learnt is what follows the prompt that a server gives.

        Raises:
            RowError: the template refuses the conversation, or the parts cannot be told.
        """
        messages = self._whole(messages)
        try:
            if self._template.marks_generation:
                return self._template.render_marked(messages, tools=tools)
            text = self._template.render(messages, tools=tools)
            prompt = self._prompt(messages[:-1], tools)
            if not text.startswith(prompt):
                text = prompt + self._answer(text, prompt, messages, tools)
            turns = [index for index, message in enumerate(messages[:-1]) if message["role"] == "assistant"]
            spans = [(len(prompt), len(text.rstrip()) if self.turn_end else len(text))]
            for index in reversed(turns):
                spans.insert(0, self._span(text, messages, index, tools, spans[0][0]))
            return text, spans
        except TemplateFailed as error:
            raise RowError(f"the chat template refuses it: {error}") from error

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> str:
        """What the model is given at serving time for the last answer of the conversation.

        Raises:
            RowError: the template refuses it.
        """
        try:
            return self._prompt(self._whole(messages)[:-1], tools)
        except TemplateFailed as error:
            raise RowError(f"the chat template refuses it: {error}") from error

    def _prompt(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> str:
        return self._template.render(messages, add_generation_prompt=True, tools=tools)

    def _answer(self, text: str, prompt: str, messages: Sequence[Message], tools: Sequence[Any] | None) -> str:
        """The last answer as it goes on from its prompt, which the finished conversation does not begin with.

        A prompt may open a thought: the answer goes on with its own, or ends it at once.
        """
        content = str(messages[-1]["content"] or "")
        try:
            start = self._start(text, messages, len(messages) - 1, tools)
        except RowError:
            found = _written_at(text, content.strip(), prompt)
            if found is None:
                raise
            start = found
        answer = text[start:]
        if "</think>" in content and "</think>" not in answer:
            opened = "<think>\n" if prompt.endswith("<think>\n") else "<think>"
            return content.removeprefix(opened if prompt.endswith(opened) else "") + self.turn_end
        if prompt.rstrip().endswith("<think>") and "</think>" not in answer:
            return f"\n</think>\n\n{answer}"
        return answer

    def _whole(self, messages: Sequence[Message]) -> Sequence[Message]:
        """With the system turn that is wanted, and with a question before an answer that stands alone."""
        if messages[0]["role"] != "system":
            messages = [*self._system, *messages]
        if messages[-1]["role"] == "assistant" and all(message["role"] != "user" for message in messages):
            messages = [*messages[:-1], {"role": "user", "content": ""}, messages[-1]]
        return messages

    def _span(
        self, text: str, messages: Sequence[Message], index: int, tools: Sequence[Any] | None, limit: int
    ) -> Span:
        """The part of an answer that others follow; it ends before `limit`, where the next one begins."""
        start = self._start(text, messages, index, tools)
        if not self.inner_end:
            until = self._template.render(messages[: index + 1], tools=tools)
            if not text.startswith(until):
                raise RowError(f"the chat template writes message {index + 1} in another way once others follow it")
            return start, len(until)
        content = str(messages[index]["content"] or "").strip()
        written = text.find(content, start, limit)
        found = text.find(self.inner_end, start if written < 0 else written + len(content), limit)
        end = found + len(self.inner_end) if found >= 0 else limit
        if messages[index + 1]["role"] == "tool":
            # Some templates write what a tool returned into the same turn.
            shared = self._num_shared(text, messages[: index + 1], tools)
            end = min(end, shared) if shared > start else end
        elif found < 0:
            raise RowError(f"the chat template does not end message {index + 1} with {self.inner_end!r}")
        return start, end

    def _num_shared(self, text: str, messages: Sequence[Message], tools: Sequence[Any] | None) -> int:
        """How far a text has what the first messages alone give, up to a special token."""
        pieces = self._pieces(text)
        common = "".join(pieces[: _num_common(pieces, self._pieces(self._template.render(messages, tools=tools)))])
        return len(common.rstrip())

    def _start(self, text: str, messages: Sequence[Message], index: int, tools: Sequence[Any] | None) -> int:
        """Where the prompt for a turn ends, or what the conversation has of that prompt.

        A prompt may open with more than a finished conversation shows, such as a thought.
        """
        prompt = self._prompt(messages[:index], tools)
        if text.startswith(prompt):
            return len(prompt)
        before = len(self._template.render(messages[:index], tools=tools))
        common = _num_common(text, prompt)
        if common < before:
            raise RowError(f"the chat template writes what is before message {index + 1} in another way in its prompt")
        borders = [match.end() for match in self._special.finditer(text, before, common)]
        return max([before, text.rfind("\n", before, common) + 1, *borders])

    def _inner_end(self) -> str:
        """The part of the turn's end that two turns have in common, or the first special token of the inner one."""
        roles = ("user", "assistant")
        pairs = zip(QUESTIONS, ANSWERS, strict=True)
        messages = [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]
        text = self._try(messages)
        if text is None or not self.turn_end:
            return self.turn_end
        inner = text.partition(ANSWERS[0])[2].partition(QUESTIONS[1])[0]
        pieces = self._pieces(inner)
        common = "".join(pieces[: _num_common(pieces, self._pieces(text.partition(ANSWERS[1])[2]))])
        if common.strip():
            return common.rstrip()
        first = self._special.search(inner)
        return first.group() if first else ""

    def _pieces(self, text: str) -> list[str]:
        """The text cut at special tokens."""
        return [piece for piece in re.split(f"({self._special.pattern})", text) if piece]

    def _system_turn(self, system: str | None, question: Message) -> list[Message]:
        if system is None:
            return []
        turn = {"role": "system", "content": system}
        if system:
            answer = {"role": "assistant", "content": ANSWERS[0]}
            probe = self._try([{"role": "system", "content": SYSTEM}, question, answer])
            if probe is None or SYSTEM not in probe:
                raise UserError(f"the model's chat template has no place for `--system {system!r:.40}`: drop it")
            return [turn]
        # An empty system turn is written only where it takes the place of a text of the template's own.
        without, empty = self._try([question]), self._try([turn, question])
        return [turn] if without is not None and empty is not None and len(empty) < len(without) else []

    def _try(self, messages: Sequence[Message]) -> str | None:
        try:
            return self._template.render(messages)
        except TemplateFailed:
            return None


def _written_at(text: str, content: str, prompt: str) -> int | None:
    """Where an answer begins in a text that has not all of its prompt; white space before it may be the answer's."""
    found = text.rfind(content) if content else -1
    if found < 0:
        return None
    head = text[:found].rstrip()
    return len(head) + _num_common(text[len(head) : found], prompt[len(prompt.rstrip()) :])


def _num_common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many elements two sequences have in common at their beginning."""
    shorter = min(len(one), len(other))
    return next((index for index in range(shorter) if one[index] != other[index]), shorter)

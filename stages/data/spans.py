"""Finds in a rendered conversation what the assistant has to write itself: `SpanFinder(template).render(messages)`.

The trained part of a turn begins where the prompt for it ends, which is what `apply_chat_template` gives with
`add_generation_prompt=True`, and ends with the token that ends the turn. Nothing is assumed of how a template looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stages.data.chat_template import ChatTemplate, Span, TemplateFailed
from stages.data.rows import RowError
from stages.errors import ModelError, UserError

__all__ = ["SpanFinder"]

Message = Mapping[str, str]

QUESTION, ANSWER, SYSTEM = "What is seven?", "Seven is prime.", "Speak of numbers."


class SpanFinder:
    """Renders conversations with one template.

    Attributes:
        turn_end: what the template writes after an answer, without white space at its end; empty if it writes nothing.
    """

    def __init__(self, template: ChatTemplate, system: str | None = None) -> None:
        """Tries the template out.

        Args:
            template: the model's.
            system: for conversations without a system turn; empty for none even where the template has its own.

        Raises:
            ModelError: the template fails on a plain question and answer, or leaves the answer out.
            UserError: it has no place for the system text given.
        """
        self._template = template
        question = [{"role": "user", "content": QUESTION}]
        try:
            text = template.render([*question, {"role": "assistant", "content": ANSWER}])
        except TemplateFailed as error:
            raise ModelError(f"the model's chat template fails on a question and its answer: {error}") from error
        if text.count(ANSWER) != 1:
            raise ModelError(f"the model's chat template does not write the answer as it is: {text!r:.300}")
        self.turn_end = text.partition(ANSWER)[2].rstrip()
        self._system = self._system_turn(system, question)

    def render(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The conversation as text, and the character ranges of the assistant's parts, in order.

        Raises:
            RowError: the template refuses the conversation, or the parts cannot be told.
        """
        if messages[0]["role"] != "system":
            messages = [*self._system, *messages]
        if messages[-1]["role"] == "assistant" and all(message["role"] != "user" for message in messages):
            messages = [*messages[:-1], {"role": "user", "content": ""}, messages[-1]]
        try:
            if self._template.marks_generation:
                return self._template.render_marked(messages)
            text = self._template.render(messages)
            turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
            return text, [self._span(text, messages, index) for index in turns]
        except TemplateFailed as error:
            raise RowError(f"the chat template refuses it: {error}") from error

    def _span(self, text: str, messages: Sequence[Message], index: int) -> Span:
        start = self._start(text, messages, index)
        if index == len(messages) - 1:
            return start, len(text.rstrip()) if self.turn_end else len(text)
        if not self.turn_end:
            until = self._template.render(messages[: index + 1])
            if not text.startswith(until):
                raise RowError(f"the chat template writes message {index + 1} in another way once others follow it")
            return start, len(until)
        content = messages[index]["content"].strip()
        written = text.find(content, start)
        end = text.find(self.turn_end, start if written < 0 else written + len(content))
        if end < 0:
            raise RowError(f"the chat template does not end message {index + 1} with {self.turn_end!r}")
        return start, end + len(self.turn_end)

    def _start(self, text: str, messages: Sequence[Message], index: int) -> int:
        prompt = self._template.render(messages[:index], add_generation_prompt=True)
        if text.startswith(prompt):
            return len(prompt)
        # A prompt that opens with more than the conversation shows, such as an empty thought: the answer's own start.
        before = self._template.render(messages[:index])
        start = text.find(messages[index]["content"].strip(), len(before)) if text.startswith(before) else -1
        if start < 0:
            raise RowError(f"the chat template writes what is before message {index + 1} in another way in its prompt")
        return start

    def _system_turn(self, system: str | None, question: Sequence[Message]) -> list[dict[str, str]]:
        if system is None:
            return []
        turn = {"role": "system", "content": system}
        if system:
            probe = self._try([{"role": "system", "content": SYSTEM}, *question])
            if probe is None or SYSTEM not in probe:
                raise UserError(f"the model's chat template has no place for `--system {system!r:.40}`: drop it")
            return [turn]
        # An empty system turn is written only where it takes the place of a text of the template's own.
        without, empty = self._try(question), self._try([turn, *question])
        return [turn] if without is not None and empty is not None and len(empty) < len(without) else []

    def _try(self, messages: Sequence[Message]) -> str | None:
        try:
            return self._template.render(messages)
        except TemplateFailed:
            return None

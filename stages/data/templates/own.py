"""The model's own chat template, in Jinja: `OwnTemplate(chat, added_tokens, settings).render(row)`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stages.data.chat_template import ChatTemplate
from stages.data.loss_scale import LossScale
from stages.data.spans import SpanFinder
from stages.data.templates.rendered import Rendered, Span, TemplateSettings

__all__ = ["OwnTemplate"]


class OwnTemplate:
    """Writes rows with Jinja, and finds what is learnt in the text.

    Attributes:
        name: `jinja`.
        turn_end: what ends an answer; empty if nothing does.
    """

    name = "jinja"

    def __init__(self, own: ChatTemplate, added_tokens: Iterable[str], settings: TemplateSettings) -> None:
        """Tries the template out.

        Raises:
            ModelError: it fails on a question and an answer.
            UserError: it has no place for the system message given.
        """
        self._own = own
        self._finder = SpanFinder(own, added_tokens, settings.system)
        self._settings = settings
        self.scale = LossScale.parse(settings.loss_scale)
        self.turn_end = self._finder.turn_end

    def render(self, row: Mapping[str, Any], *, answer: str | None = None) -> Rendered:
        """The row as text; see `Template`."""
        messages = row["messages"]
        if answer is not None:
            messages = [*messages[:-1], {"role": "assistant", "content": answer}]
        text, found = self._finder.render(messages)
        return Rendered(text, self._weighed(text, found, messages))

    def prompt(self, row: Mapping[str, Any]) -> str:
        """What the model is given for the last answer; see `Template`."""
        return self._finder.prompt(row["messages"])

    def chat_template(self, *, tools: bool = False) -> str | None:
        """The Jinja for an export; see `Template`."""
        return None

    def _weighed(
        self, text: str, found: Sequence[tuple[int, int]], messages: Sequence[Mapping[str, Any]]
    ) -> list[Span]:
        return [Span(start, end, 1.0) for start, end in found]

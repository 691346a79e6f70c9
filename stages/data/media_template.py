"""A chat template for rows with media: tags in a message become the parts that a model's Jinja asks for.

`MediaTemplate.of(chat).render([{"role": "user", "content": "<image>What is it?"}])`
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from stages.data.chat_template import ChatTemplate, Span, TemplateFailed

__all__ = ["MediaTemplate"]

TAG = re.compile("<(image|video|audio)>")
PROBE = "alpha omega"


@dataclass(frozen=True)
class MediaTemplate(ChatTemplate):
    """Renders as transformers' processors do: the content of a message is a list of parts.

    Attributes:
        tags: whether `<image>`, `<video>` and `<audio>` are media, or words like any other.
    """

    tags: bool = True

    @classmethod
    def of(cls, template: ChatTemplate) -> MediaTemplate:
        """The same template."""
        return cls(template.text, template.special_tokens)

    def render(self, messages: Sequence[Mapping[str, Any]], **given: Any) -> str:
        """See `ChatTemplate`."""
        return super().render([self._parted(message) for message in messages], **given)

    def render_marked(self, messages: Sequence[Mapping[str, Any]], **given: Any) -> tuple[str, list[Span]]:
        """See `ChatTemplate`."""
        return super().render_marked([self._parted(message) for message in messages], **given)

    def markup(self, tag: str) -> str | None:
        """What the template writes for a tag in the middle of a question; None if it puts media elsewhere."""
        try:
            text = self.render([{"role": "user", "content": f"alpha{tag}omega"}])
        except TemplateFailed:
            return None
        before, _, rest = text.partition("alpha")
        written, found, after = rest.partition("omega")
        return written if found and before + after == self._around else None

    @cached_property
    def _around(self) -> str:
        return self.render([{"role": "user", "content": "alphaomega"}]).replace("alphaomega", "")

    def _parted(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        content = message.get("content")
        if not isinstance(content, str) or not self.reads_parts(message["role"]):
            return message
        pieces = TAG.split(content) if self.tags else [content]
        parts = [
            {"type": piece} if index % 2 else {"type": "text", "text": piece}
            for index, piece in enumerate(pieces)
            if piece or len(pieces) == 1
        ]
        return {**message, "content": parts}

    def reads_parts(self, role: str) -> bool:
        """Whether what a role says is given to the template as a list of parts."""
        return self._takes_parts.get(role, True)

    @cached_property
    def _takes_parts(self) -> Mapping[str, bool]:
        """By role: some templates read parts in questions only."""
        return {role: self._tried(role) for role in ("system", "assistant", "tool")}

    def _tried(self, role: str) -> bool:
        part = [{"type": "text", "text": PROBE}]
        question: dict[str, Any] = {"role": "user", "content": [{"type": "text", "text": "beta"}]}
        turn: dict[str, Any] = {"role": role, "content": part}
        try:
            text = super().render([turn, question] if role == "system" else [question, turn])
        except TemplateFailed:
            return False
        return PROBE in text and "'type'" not in text and '"type"' not in text

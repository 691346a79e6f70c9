"""The template without roles, for pre-training and base models: the query, the response, the token that ends a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.data.templates.meta import TemplateMeta
from stages.data.templates.native import NativeTemplate
from stages.data.templates.rendered import TemplateSettings

if TYPE_CHECKING:
    from stages.data.tokenizer import ModelTokenizer

__all__ = ["GenerationTemplate"]


class GenerationTemplate(NativeTemplate):
    """Query and response joined; in front the token that the tokenizer itself puts before every text, if any."""

    def __init__(self, tokenizer: ModelTokenizer, settings: TemplateSettings) -> None:
        """Asks the tokenizer what it begins a text with.

        Raises:
            ArgumentsError: a system message, an unknown loss scale.
        """
        bos = tokenizer.token_id("bos_token")
        begins = bos is not None and tokenizer.tokenizer.encode("a").ids[:1] == [bos]
        meta = TemplateMeta("generation", prefix="{{BOS}}" if begins else "", prompt="{{QUERY}}", chat_sep=None)
        super().__init__(meta, tokenizer.special_tokens, settings)

    def chat_template(self, *, tools: bool = False) -> str | None:
        """None: whoever completes a text writes nothing around it, and a chat template of the model's own is kept."""
        return None

"""Decides which chat template an exported tokenizer carries: `exported_template(native, own, tools=False)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.data.chat_template import ChatTemplate
from stages.data.templates.detect import CALLS, PROBES, prompts_agree
from stages.data.templates.jinja import jinja_of, with_system

if TYPE_CHECKING:
    from stages.data.templates.native import NativeTemplate

__all__ = ["exported_template"]


def exported_template(native: NativeTemplate, own: ChatTemplate | None, *, tools: bool) -> str | None:
    """The model's own if it gives the same prompts (None), the same with a system message, or one that is made.

    Args:
        native: what the rows were written with.
        own: what the tokenizer carries.
        tools: whether rows have tools.
    """
    probes = [*PROBES, *CALLS] if tools else list(PROBES)
    if own is not None:
        if prompts_agree(native, own, probes):
            return None
        if native.settings.system is not None:
            wrapped = ChatTemplate(with_system(own.text, native.settings.system), own.special_tokens)
            if prompts_agree(native, wrapped, probes):
                return wrapped.text
    return jinja_of(native)

"""Templates turn a standard row into the text that a model reads: `open_template(settings, tokenizer).render(row)`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.data.templates.meta import TemplateMeta, register_template
from stages.data.templates.rendered import Rendered, Span, Template, TemplateSettings
from stages.errors import ArgumentsError, ModelError

if TYPE_CHECKING:
    from stages.data.tokenizer import ModelTokenizer

__all__ = [
    "Rendered",
    "Span",
    "Template",
    "TemplateMeta",
    "TemplateSettings",
    "open_template",
    "register_template",
]


def open_template(settings: TemplateSettings, tokenizer: ModelTokenizer) -> Template:
    """The template that the settings and the model ask for.

    A name given wins; else the registered template that writes what the model's own does; else the model's own.

    Raises:
        ArgumentsError: no template has the name, a setting that the template cannot honour.
        ModelError: the model has no chat template and none is named.
    """
    from stages.data.templates.detect import detect_template
    from stages.data.templates.generation import GenerationTemplate
    from stages.data.templates.meta import find_template
    from stages.data.templates.native import NativeTemplate
    from stages.data.templates.own import OwnTemplate

    if not settings.use_chat_template:
        return GenerationTemplate(tokenizer, settings)
    own, tokens = tokenizer.template, tokenizer.special_tokens
    jinja = settings.template_backend == "jinja"
    if jinja and own is None:
        raise ModelError("`--template_backend jinja` needs the model's own chat template, and it has none: drop it")
    if jinja and settings.template is not None:
        raise ArgumentsError(f"`--template {settings.template}` and `--template_backend jinja` exclude each other")
    if settings.template is not None:
        meta = find_template(settings.template)
        return NativeTemplate(meta, tokens, settings, own)
    if own is None:
        raise ModelError(
            "the model has no chat template. Name one with `--template`, such as chatml, use the model's "
            "instruction-tuned version, or put a chat_template.jinja beside its tokenizer.json"
        )
    if not jinja and (found := detect_template(own)) is not None:
        return NativeTemplate(found, tokens, settings, own)
    return OwnTemplate(own, tokenizer.added_tokens, settings)

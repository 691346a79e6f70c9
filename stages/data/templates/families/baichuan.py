"""Baichuan's template, whose roles are reserved tokens."""

from stages.data.templates.meta import TemplateMeta, register_template

__all__: list[str] = []

register_template(
    TemplateMeta(
        "baichuan",
        prefix="",
        prompt="<reserved_106>{{QUERY}}<reserved_107>",
        chat_sep="",
        suffix="{{EOS}}",
        system_prefix="{{SYSTEM}}",
        generation_prompt="<reserved_107>",
    )
)

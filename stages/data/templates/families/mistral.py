"""Mistral's templates: the instruction models since v0.3, Nemo, and those with a system token of their own."""

from stages.data.templates.meta import TemplateMeta, register_template

__all__: list[str] = []

register_template(
    TemplateMeta(
        "mistral",
        prefix="{{BOS}}",
        prompt="[INST] {{QUERY}}[/INST]",
        chat_sep="{{EOS}}",
        suffix="{{EOS}}",
        system_query="{{SYSTEM}}\n\n",
        system_in="last",
        generation_prompt="",
        answer_prefix=" ",
    )
)
register_template(
    TemplateMeta(
        "mistral_nemo",
        prefix="{{BOS}}",
        prompt="[INST]{{QUERY}}[/INST]",
        chat_sep="{{EOS}}",
        suffix="{{EOS}}",
        system_query="{{SYSTEM}}\n\n",
        system_in="last",
        generation_prompt="",
    )
)
register_template(
    TemplateMeta(
        "mistral_2501",
        prefix="{{BOS}}",
        prompt="[INST]{{QUERY}}[/INST]",
        chat_sep="{{EOS}}",
        suffix="{{EOS}}",
        system_prefix="{{BOS}}[SYSTEM_PROMPT]{{SYSTEM}}[/SYSTEM_PROMPT]",
        generation_prompt="",
    )
)

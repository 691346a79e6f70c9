"""Google's templates: Gemma, Gemma 2 and Gemma 3."""

from stages.data.templates.meta import EVERY_ROLE, TemplateMeta, register_template

__all__: list[str] = []


def _gemma(name: str, system_query: str | None = None) -> TemplateMeta:
    return TemplateMeta(
        name,
        prefix="{{BOS}}",
        prompt="<start_of_turn>user\n{{QUERY}}<end_of_turn>\n<start_of_turn>model\n",
        chat_sep="<end_of_turn>\n",
        suffix="<end_of_turn>\n",
        system_query=system_query,
        trimmed=EVERY_ROLE,
    )


register_template(_gemma("gemma"))
register_template(_gemma("gemma2"))
register_template(_gemma("gemma3", "{{SYSTEM}}\n\n"))

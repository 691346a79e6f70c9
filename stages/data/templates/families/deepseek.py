"""DeepSeek's templates: V2, V2.5 and V3, R1."""

from stages.data.templates.meta import TemplateMeta, register_template
from stages.data.templates.thinking import R1, Thinking

__all__: list[str] = []

register_template(
    TemplateMeta(
        "deepseek",
        prefix="{{BOS}}",
        prompt="User: {{QUERY}}\n\nAssistant:",
        chat_sep="{{EOS}}",
        suffix="{{EOS}}",
        system_prefix="{{BOS}}{{SYSTEM}}\n\n",
        generation_prompt="Assistant:",
        answer_prefix=" ",
    )
)


def _deepseek(name: str, thinking: Thinking | None = None) -> TemplateMeta:
    return TemplateMeta(
        name,
        prefix="{{BOS}}",
        prompt="<｜User｜>{{QUERY}}<｜Assistant｜>",
        chat_sep="{{EOS}}",
        suffix="{{EOS}}",
        system_prefix="{{BOS}}{{SYSTEM}}",
        generation_prompt="<｜Assistant｜>",
        thinking=thinking,
    )


register_template(_deepseek("deepseek_v3"))
register_template(_deepseek("deepseek_v2_5"))
register_template(_deepseek("deepseek_r1", R1))

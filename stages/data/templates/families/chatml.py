"""ChatML, and the models that speak it with a word of their own before it."""

from stages.data.templates.meta import TemplateMeta, register_template
from stages.data.templates.thinking import QWEN3, Thinking

__all__: list[str] = []


def _chatml(
    name: str,
    *,
    system: str | None = None,
    prefix: str = "",
    tools: str = "react_en",
    thinking: Thinking | None = None,
) -> TemplateMeta:
    return TemplateMeta(
        name,
        prefix=prefix,
        prompt="<|im_start|>user\n{{QUERY}}<|im_end|>\n<|im_start|>assistant\n",
        chat_sep="<|im_end|>\n",
        suffix="<|im_end|>\n",
        system_prefix=prefix + "<|im_start|>system\n{{SYSTEM}}<|im_end|>\n",
        default_system=system,
        default_tools_prompt=tools,
        thinking=thinking,
    )


register_template(_chatml("chatml"))
register_template(_chatml("qwen", system="You are a helpful assistant."))
register_template(
    _chatml(
        "qwen2_5",
        system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        tools="hermes",
    )
)
register_template(_chatml("qwen3", tools="hermes", thinking=QWEN3))
register_template(_chatml("qwen3_nothinking", tools="hermes"))
register_template(_chatml("smollm", system="You are a helpful AI assistant named SmolLM, trained by Hugging Face"))
register_template(_chatml("internlm2", prefix="{{BOS}}"))
register_template(_chatml("yi"))
register_template(
    TemplateMeta(
        "yi_1_5",
        prefix="",
        prompt="<|im_start|>user\n{{QUERY}}<|im_end|>\n<|im_start|>assistant\n",
        chat_sep="<|im_end|>\n",
        suffix="<|im_end|>\n",
        system_prefix="{{SYSTEM}}",
        generation_prompt="",
    )
)

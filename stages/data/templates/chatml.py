"""ChatML, and the models that speak it with a word of their own before it."""

from stages.data.templates.meta import TemplateMeta, register_template

__all__: list[str] = []


def _chatml(name: str, default_system: str | None = None, prefix: str = "") -> TemplateMeta:
    return TemplateMeta(
        name,
        prefix=prefix,
        prompt="<|im_start|>user\n{{QUERY}}<|im_end|>\n<|im_start|>assistant\n",
        chat_sep="<|im_end|>\n",
        suffix="<|im_end|>\n",
        system_prefix=prefix + "<|im_start|>system\n{{SYSTEM}}<|im_end|>\n",
        default_system=default_system,
    )


register_template(_chatml("chatml"))
register_template(_chatml("qwen", "You are a helpful assistant."))
register_template(_chatml("smollm", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"))
register_template(_chatml("internlm2", prefix="{{BOS}}"))

"""Zhipu's template: GLM-4. What comes next ends an answer."""

from stages.data.templates.meta import TemplateMeta, register_template

__all__: list[str] = []

register_template(
    TemplateMeta(
        "glm4",
        prefix="[gMASK]<sop>",
        prompt="<|user|>\n{{QUERY}}<|assistant|>\n",
        chat_sep="",
        suffix="<|user|>",
        system_prefix="[gMASK]<sop><|system|>\n{{SYSTEM}}",
        tool_prompt="<|observation|>\n{{QUERY}}<|assistant|>\n",
        default_tools_prompt="glm4",
        generation_prompt="<|assistant|>\n",
        stop_words=("<|endoftext|>", "<|user|>", "<|observation|>"),
    )
)

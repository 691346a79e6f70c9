"""Meta's templates: Llama 2, 3, 3.1 and 3.2."""

from stages.data.chat_template import PINNED_DATE
from stages.data.templates.meta import EVERY_ROLE, TemplateMeta, register_template

__all__: list[str] = []

register_template(
    TemplateMeta(
        "llama2",
        prefix="",
        prompt="{{BOS}}[INST] {{QUERY}} [/INST]",
        chat_sep=" {{EOS}}",
        suffix=" {{EOS}}",
        system_query="<<SYS>>\n{{SYSTEM}}\n<</SYS>>\n\n",
        trimmed=EVERY_ROLE,
        trims_query=True,
        generation_prompt="",
        answer_prefix=" ",
    )
)


def _llama3(name: str, head: str | None = None) -> TemplateMeta:
    """With a head, there always is a system message, which begins with it."""
    system = "{{BOS}}<|start_header_id|>system<|end_header_id|>\n\n"
    return TemplateMeta(
        name,
        prefix="{{BOS}}" if head is None else f"{system}{head}<|eot_id|>",
        prompt="<|start_header_id|>user<|end_header_id|>\n\n{{QUERY}}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        chat_sep="<|eot_id|>",
        suffix="<|eot_id|>",
        system_prefix=f"{system}{head or ''}{{{{SYSTEM}}}}<|eot_id|>",
        tool_prompt="<|start_header_id|>tool<|end_header_id|>\n\n{{QUERY}}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        default_tools_prompt="toolbench",
        trimmed=EVERY_ROLE,
    )


register_template(_llama3("llama3"))
# The models' own templates write today's date where they can; see PINNED_DATE.
HEAD = f"Cutting Knowledge Date: December 2023\nToday Date: {PINNED_DATE:%d %b %Y}\n\n"
register_template(_llama3("llama3_1", HEAD))
register_template(_llama3("llama3_2", HEAD))

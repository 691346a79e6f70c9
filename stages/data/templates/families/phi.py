"""Microsoft's templates: Phi-3 and Phi-4."""

from stages.data.templates.meta import TemplateMeta, register_template

__all__: list[str] = []


def _phi3(name: str, *, empty_system: bool) -> TemplateMeta:
    return TemplateMeta(
        name,
        prefix="",
        prompt="<|user|>\n{{QUERY}}<|end|>\n<|assistant|>\n",
        chat_sep="<|end|>\n",
        suffix="<|end|>\n{{EOS}}",
        system_prefix="<|system|>\n{{SYSTEM}}<|end|>\n",
        empty_system=empty_system,
    )


register_template(_phi3("phi3", empty_system=True))
register_template(_phi3("phi3_5", empty_system=False))
register_template(
    TemplateMeta(
        "phi4",
        prefix="",
        prompt="<|im_start|>user<|im_sep|>{{QUERY}}<|im_end|><|im_start|>assistant<|im_sep|>",
        chat_sep="<|im_end|>",
        suffix="<|im_end|>",
        system_prefix="<|im_start|>system<|im_sep|>{{SYSTEM}}<|im_end|>",
    )
)

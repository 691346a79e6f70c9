"""SWIFT's template parameters: how a conversation becomes tokens, and which of them are learnt."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, model_validator

from stages.arguments.base import Arguments, option
from stages.arguments.data import PluginArguments

__all__ = [
    "LOSS_SCALES",
    "LengthArguments",
    "LossScaleArguments",
    "MaxLengthArguments",
    "SequenceParallelArguments",
    "TemplateArguments",
]

LOSS_SCALES = (
    "default",
    "last_round",
    "all",
    "react",
    "agentflan",
    "alpha_umi",
    "ignore_empty_think",
    "ignore_think_prefix",
    "hermes",
    "qwen",
)
"""What may stand in loss_scale, alone or joined by +; a registered plugin may add names."""


def _check_loss_scale(value: object) -> object:
    """Each part is a word; whether it is a known one is said where plugins are known, in `prepare` of tokenize."""
    if isinstance(value, str) and not all(part.strip() for part in value.split("+")):
        raise ValueError(f"write names joined by +, such as last_round+react. Choose from: {', '.join(LOSS_SCALES)}")
    return value


class TemplateArguments(PluginArguments):
    """How a conversation is written down for the model."""

    GROUP: ClassVar[str] = "Template Parameters"

    template: str | None = option(None)
    """Chat template; the model's own if left out."""
    system: str | None = option(None)
    """System message for rows without one; empty for none at all, the template's own if left out."""
    max_pixels: int | None = option(None, ge=1)
    """Largest height x width of an image; larger ones are scaled down."""
    tools_prompt: Literal["react_en", "react_zh", "glm4", "toolbench", "hermes", "qwen", "custom"] = option("react_en")
    """How a row's tools are written into its system message."""
    use_chat_template: bool = option(True)
    """Write roles as the chat template does; false joins query and response."""
    template_backend: Literal["swift", "jinja"] = option("swift")
    """Who writes the conversation at inference: the template here, or the tokenizer's jinja template."""

    @model_validator(mode="after")
    def _check_template(self) -> Self:
        if self.template is not None and not self.use_chat_template:
            raise ValueError(f"`--use_chat_template false` writes no template: drop `--template {self.template}`")
        if self.template is not None and self.template_backend == "jinja":
            raise ValueError(f"`--template {self.template}` and `--template_backend jinja` exclude each other")
        return self


class MaxLengthArguments(Arguments):
    """How long a row may be."""

    GROUP: ClassVar[str] = "Template Parameters"

    max_length: int | None = option(None, ge=1)
    """Tokens of one row at most; as many as the model takes if left out."""


class LengthArguments(MaxLengthArguments):
    """What happens to rows that are too long."""

    GROUP: ClassVar[str] = "Template Parameters"

    truncation_strategy: Literal["delete", "left"] = option("left")
    """What to do with a longer row: drop it, or keep its last max_length tokens."""


class LossScaleArguments(Arguments):
    """Which tokens are learnt, and how strongly."""

    GROUP: ClassVar[str] = "Template Parameters"

    loss_scale: Annotated[str, BeforeValidator(_check_loss_scale)] = option("default", min_length=1)
    """Weight of each token of an answer in the loss, by name; several names are joined by +."""


class SequenceParallelArguments(Arguments):
    """One row over several devices."""

    GROUP: ClassVar[str] = "Template Parameters"

    sequence_parallel_size: int = option(1, ge=1)
    """Devices that share one row; must divide their number."""

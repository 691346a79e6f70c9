"""SWIFT's template parameters: how a conversation becomes tokens, and which of them are learnt."""

from typing import ClassVar, Literal

from stages.arguments.base import Arguments, option

__all__ = ["LengthArguments", "LossScaleArguments", "SequenceParallelArguments", "TemplateArguments"]


class TemplateArguments(Arguments):
    """How a conversation is written down for the model."""

    GROUP: ClassVar[str] = "Template Parameters"

    template: str | None = option(None)
    """Chat template; the model's own if left out."""
    system: str | None = option(None)
    """System message for rows without one; empty for none at all, the template's own if left out."""
    max_pixels: int | None = option(None, ge=1)
    """Largest height x width of an image; larger ones are scaled down."""
    tools_prompt: Literal["react_en", "react_zh", "glm4", "toolbench", "custom"] = option("react_en")
    """How a row's tools are written into its system message."""
    use_chat_template: bool = option(True)
    """Write roles as the chat template does; false joins query and response."""
    template_backend: Literal["swift", "jinja"] = option("swift")
    """Who writes the conversation at inference: the template here, or the tokenizer's jinja template."""


class LengthArguments(Arguments):
    """What happens to rows that are too long."""

    GROUP: ClassVar[str] = "Template Parameters"

    max_length: int | None = option(None, ge=1)
    """Tokens of one row at most; as many as the model takes if left out."""
    truncation_strategy: Literal["delete", "left"] = option("left")
    """What to do with a longer row: drop it, or keep its last max_length tokens."""


class LossScaleArguments(Arguments):
    """Which tokens are learnt, and how strongly."""

    GROUP: ClassVar[str] = "Template Parameters"

    loss_scale: Literal["default", "last_round", "all", "react", "agentflan", "alpha_umi"] = option("default")
    """Weight of each token of an answer in the loss."""


class SequenceParallelArguments(Arguments):
    """One row over several devices."""

    GROUP: ClassVar[str] = "Template Parameters"

    sequence_parallel_size: int = option(1, ge=1)
    """Devices that share one row; must divide their number."""

"""SWIFT's NEFTune and LISA parameters: noise on embeddings, and training a few layers at a time."""

from typing import ClassVar, Self

from pydantic import model_validator

from stages.arguments.base import Arguments, option

__all__ = ["LisaArguments", "NeftuneArguments"]


class NeftuneArguments(Arguments):
    """NEFTune (arXiv 2310.05914)."""

    GROUP: ClassVar[str] = "NEFTune Parameters"

    neftune_noise_alpha: float | None = option(None, ge=0)
    """Strength of the noise added to embeddings in training, usually 5, 10 or 15; none if left out."""


class LisaArguments(Arguments):
    """LISA (arXiv 2403.17919)."""

    GROUP: ClassVar[str] = "LISA Fine-tuning Parameters"

    lisa_activated_layers: int = option(0, ge=0)
    """Layers that are trained at a time, usually 2 or 8; 0 turns LISA off."""
    lisa_step_interval: int = option(20, ge=1)
    """Steps until other layers are chosen."""

    @model_validator(mode="after")
    def _check_lisa(self) -> Self:
        if self.lisa_activated_layers and getattr(self, "train_type", "full") != "full":
            raise ValueError("`--lisa_activated_layers` trains whole layers: add `--train_type full`")
        return self

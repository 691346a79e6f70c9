"""SWIFT's generation parameters: how the next token is chosen, and when to stop."""

from typing import ClassVar, Self

from pydantic import model_validator

from stages.arguments.base import Arguments, Strings, option

__all__ = ["GenerationArguments", "SamplingArguments", "StopArguments", "StreamArguments"]


class SamplingArguments(Arguments):
    """How tokens are chosen."""

    GROUP: ClassVar[str] = "Generation Parameters"

    max_new_tokens: int | None = option(None, ge=1)
    """Tokens to generate at most; as many as the model has room for if left out."""
    temperature: float | None = option(None, ge=0)
    """0 takes the likeliest token; the model's own setting if left out."""
    top_k: int | None = option(None, ge=-1)
    """Sample from the k likeliest tokens; the model's own setting if left out."""
    top_p: float | None = option(None, gt=0, le=1)
    """Sample from the likeliest tokens that add up to this probability; the model's own setting if left out."""
    repetition_penalty: float | None = option(None, gt=0)
    """Above 1 discourages repetition; the model's own setting if left out."""
    num_beams: int = option(1, ge=1)
    """Beams of beam search; 1 is none."""


class StreamArguments(Arguments):
    """How text comes out."""

    GROUP: ClassVar[str] = "Generation Parameters"

    stream: bool = option(False)
    """Give text as it is generated."""


class StopArguments(Arguments):
    """What ends a text."""

    GROUP: ClassVar[str] = "Generation Parameters"

    stop_words: Strings = option([])
    """Texts that end generation, beside the template's own."""


class GenerationArguments(SamplingArguments, StreamArguments, StopArguments):
    """All of the group."""

    GROUP: ClassVar[str] = "Generation Parameters"

    @model_validator(mode="after")
    def _settle_stream(self) -> Self:
        if self.num_beams != 1:
            self._resolve(stream=False)
        return self

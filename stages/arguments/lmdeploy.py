"""SWIFT's LMDeploy parameters."""

from typing import Annotated, ClassVar, Literal

from stages.arguments.base import Arguments, WholeNumber, option

__all__ = ["LmdeployArguments"]


class LmdeployArguments(Arguments):
    """The LMDeploy engine."""

    GROUP: ClassVar[str] = "LMDeploy Parameters"

    tp: int = option(1, ge=1)
    """GPUs that share the weights."""
    session_len: int | None = option(None, ge=1)
    """Tokens of a conversation at most; as many as the model takes if left out."""
    cache_max_entry_count: float = option(0.8, ge=0, le=1)
    """Share of free GPU memory for the key-value cache."""
    quant_policy: Annotated[Literal[0, 4, 8], WholeNumber] = option(0)
    """Bits of the key-value cache; 0 leaves it as it is."""
    vision_batch_size: int = option(1, ge=1)
    """Images that are encoded at a time."""

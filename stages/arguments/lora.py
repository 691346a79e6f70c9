"""SWIFT's LoRA and LoRA+ parameters, and the choice of what adapters attach to, which other tuners share."""

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, model_validator

from stages.arguments.base import Arguments, Dtype, Strings, option

__all__ = ["LoraArguments", "LoraPlusArguments", "TunerArguments", "TunerTargetArguments"]

TrainType = Literal["lora", "full", "longlora", "adalora", "llamapro", "adapter", "vera", "boft", "fourierft", "reft"]


def _check_init(value: object) -> object:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if text.lower() in ("true", "false"):
        return text.lower()
    if not re.fullmatch(r"gaussian|pissa|pissa_niter_[1-9]\d*", text):
        raise ValueError("choose from true, false, gaussian, pissa, pissa_niter_N")
    return text


def _check_regex(value: object) -> object:
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
    return value


class TunerArguments(Arguments):
    """What is trained: all weights, or an adapter of one kind or another."""

    GROUP: ClassVar[str] = "LoRA Parameters"

    train_type: TrainType = option("lora")
    """What is trained: an adapter of this kind, or with full all weights."""
    tuner_backend: Literal["peft", "unsloth"] = option("peft")
    """The library that attaches adapters."""


class TunerTargetArguments(Arguments):
    """Where adapters attach."""

    GROUP: ClassVar[str] = "LoRA Parameters"

    target_modules: Strings = option(["all-linear"], min_length=1)
    """Modules that get an adapter, by name; all-linear is every linear layer except the output head."""
    target_regex: Annotated[str, BeforeValidator(_check_regex)] | None = option(None)
    """Modules that get an adapter, by a regular expression for their whole path; replaces target_modules."""
    modules_to_save: Strings = option([])
    """Modules of the base model that are trained in full and stored with the adapter."""


class LoraArguments(TunerTargetArguments):
    """Low-rank adapters."""

    GROUP: ClassVar[str] = "LoRA Parameters"
    ALIASES: ClassVar[Mapping[str, str]] = {"init_weights": "init_lora_weights", "lora_bias": "lora_bias_trainable"}

    lora_rank: int = option(8, ge=1)
    """Rank of the two matrices."""
    lora_alpha: int = option(32, ge=1)
    """Strength: the update is scaled by lora_alpha / lora_rank."""
    lora_dropout: float = option(0.05, ge=0, le=1)
    """Share of inputs dropped in training."""
    init_lora_weights: Annotated[str, BeforeValidator(_check_init, json_schema_input_type=str)] = option("true")
    """How the matrices start: true, false, gaussian, pissa, pissa_niter_N."""
    lora_bias_trainable: Literal["none", "all"] = option("none")
    """Whether biases are trained too."""
    lora_dtype: Dtype | None = option(None)
    """Data type of the matrices; that of the layer they attach to if left out."""
    use_dora: bool = option(False)
    """Learn magnitude and direction apart (DoRA)."""
    use_rslora: bool = option(False)
    """Scale by lora_alpha / sqrt(lora_rank) instead (rank-stabilized LoRA)."""


class LoraPlusArguments(Arguments):
    """LoRA+: two learning rates."""

    GROUP: ClassVar[str] = "LoRA+ Fine-tuning Parameters"

    lorap_lr_ratio: float | None = option(None, ge=1)
    """Learning rate of the B matrices as a multiple of that of the A matrices; 10 to 16 is usual."""

    @model_validator(mode="after")
    def _check_lora_plus(self) -> Self:
        if self.lorap_lr_ratio is not None and getattr(self, "train_type", "lora") != "lora":
            raise ValueError("`--lorap_lr_ratio` is for `--train_type lora` only: drop one of them")
        return self

"""SWIFT's export parameters: quantizing a model into files, and pushing it to a hub."""

import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, model_validator

from stages.arguments.base import Arguments, option
from stages.arguments.quantization import BnbArguments, QuantBits, check_bits

__all__ = ["CalibrationArguments", "ExportQuantizationArguments", "PushArguments", "PushToHubSwitch"]


def _check_group_size(value: int) -> int:
    if value != -1 and value < 16:
        raise ValueError("give -1 (one group a row) or at least 16")
    return value


def _check_repository(value: str) -> str:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", value):
        raise ValueError("give group/name, in letters, digits, dots, dashes and underscores")
    return value


class CalibrationArguments(Arguments):
    """The rows that GPTQ and AWQ look at."""

    GROUP: ClassVar[str] = "Export Parameters"

    quant_n_samples: int = option(256, ge=1)
    """Rows that gptq and awq are calibrated on."""
    quant_seqlen: int = option(2048, ge=1)
    """Tokens of a block of calibration."""
    quant_batch_size: int = option(1, ge=1)
    """Blocks of calibration at a time."""
    group_size: Annotated[int, AfterValidator(_check_group_size)] = option(128)
    """Weights that share a scale; must divide a layer's inputs. -1 is a whole row."""


class ExportQuantizationArguments(CalibrationArguments, BnbArguments):
    """How the exported model is quantized."""

    GROUP: ClassVar[str] = "Export Parameters"

    quant_method: Literal["bnb", "gptq", "awq"] | None = option(None)
    """How the exported weights are quantized; not at all if left out."""
    quant_bits: QuantBits | None = option(None)
    """Bits of a weight: bnb 4 or 8; gptq 2, 3, 4 or 8; awq 4."""

    @model_validator(mode="after")
    def _check_export_quantization(self) -> Self:
        check_bits(self.quant_method, self.quant_bits, ("bnb", "gptq", "awq"))
        return self


class PushArguments(Arguments):
    """Publishing on a hub."""

    GROUP: ClassVar[str] = "Export Parameters"

    hub_model_id: Annotated[str, AfterValidator(_check_repository)] | None = option(None)
    """Repository on the hub: group/name."""
    hub_private_repo: bool = option(False)
    """Make the repository private."""
    commit_message: str = option("update files")
    """Message of the commit on the hub."""


class PushToHubSwitch(PushArguments):
    """Whether to publish at all."""

    GROUP: ClassVar[str] = "Export Parameters"

    push_to_hub: bool = option(False)
    """Push the result to a hub."""

    @model_validator(mode="after")
    def _check_push(self) -> Self:
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("`--push_to_hub` needs `--hub_model_id`: give group/name")
        return self

"""The arguments of the flow from rows to a published model, `sft-then-export`.

Names that mean two things: in `SftThenExportArguments`, quant_method, quant_bits, group_size and bnb_* are the
*export's*, and temperature and max_new_tokens are those of evaluation. What training quantizes the base with (QLoRA)
has names of its own there, load_quant_method and so on, which `for_stage` gives to the train stage without the prefix.
"""

from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import model_validator

from stages.arguments.base import Arguments, Dtype, option
from stages.arguments.commands.training import TrainingArguments
from stages.arguments.evaluation import ReportArguments
from stages.arguments.export import PushToHubSwitch
from stages.arguments.merge import MergeLoraArguments
from stages.arguments.quantization import QuantBits
from stages.arguments.stages import (
    EvaluateArguments,
    MergeArguments,
    PushToHubArguments,
    QuantizeArguments,
    TrainArguments,
)

__all__ = ["LoadedBaseArguments", "SftThenExportArguments"]

A = TypeVar("A", bound=Arguments)
PREFIX = "load_"


class LoadedBaseArguments(Arguments):
    """What training quantizes the base model with, in a flow whose other quantization is that of the result."""

    GROUP: ClassVar[str] = "Quantization Parameters"

    quant_method: Literal["bnb", "gptq", "awq"] | None = option(None)
    """How the resulting weights are quantized; not at all if left out."""
    load_quant_method: Literal["bnb", "hqq", "eetq"] | None = option(None)
    """How the base model is quantized for training (quant_method says how the result is)."""
    load_quant_bits: QuantBits | None = option(None)
    """Bits of a weight of the base model in training: bnb 4 or 8; hqq 1, 2, 3, 4 or 8; eetq 8."""
    load_bnb_4bit_compute_dtype: Dtype | None = option(None)
    """Data type that the base's 4-bit weights are computed in; torch_dtype if left out."""
    load_bnb_4bit_quant_type: Literal["fp4", "nf4"] = option("nf4")
    """The base's 4-bit format."""
    load_bnb_4bit_use_double_quant: bool = option(True)
    """Quantize the scales of the base's 4-bit blocks too."""
    load_bnb_4bit_quant_storage: Literal["uint8", "int8", "float16", "bfloat16", "float32"] | None = option(None)
    """Data type that the base's 4-bit weights are stored in; uint8 if left out."""


class SftThenExportArguments(
    LoadedBaseArguments,
    TrainingArguments,
    MergeLoraArguments,
    MergeArguments,
    QuantizeArguments,
    EvaluateArguments,
    PushToHubArguments,
    PushToHubSwitch,
    ReportArguments,
):
    """Fine-tuning, then merging, quantizing, evaluating and publishing."""

    NAME: ClassVar[str] = "sft-then-export"
    LOADED_BY: ClassVar[str] = PREFIX

    merge_lora: bool = option(True)
    """Fold the adapter into the model, as this flow always does."""

    @model_validator(mode="after")
    def _check_flow(self) -> Self:
        if not self.merge_lora:
            raise ValueError("`--merge_lora false` leaves nothing to export: use `martlet sft` to stop at the adapter")
        unmerged = {"reft": "interventions", "adapter": "networks between the layers"}
        if self.train_type in unmerged:
            raise ValueError(
                f"`--train_type {self.train_type}` leaves {unmerged[self.train_type]}, which cannot be folded into a "
                "model: use `martlet sft`"
            )
        return self

    def for_stage(self, stage: type[A], **changes: Any) -> A:
        """See `Arguments`; the train stage knows what training quantizes by under SWIFT's names."""
        if not issubclass(stage, TrainArguments):
            return super().for_stage(stage, **changes)
        fields = type(self).model_fields
        names = [name for name in fields if name.startswith(PREFIX) and name.removeprefix(PREFIX) in stage.model_fields]
        return super().for_stage(stage, **{n.removeprefix(PREFIX): getattr(self, n) for n in names} | changes)

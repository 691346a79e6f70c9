"""The arguments of the flow from rows to a published model, `sft-then-export`.

Names that mean two things: in `SftThenExportArguments`, quant_method, quant_bits, group_size and bnb_* are the
*export's*, and temperature and max_new_tokens are those of evaluation. To train on a quantized base there as well
(QLoRA), give the load's parameters names of their own in that class (load_quant_method …), add
QuantizeOnLoadArguments to TrainArguments, and let its `for_stage` rename them for the train stage.
"""

from typing import ClassVar, Self

from pydantic import model_validator

from stages.arguments.base import option
from stages.arguments.commands.training import TrainingArguments
from stages.arguments.evaluation import ReportArguments
from stages.arguments.export import PushToHubSwitch
from stages.arguments.merge import MergeLoraArguments
from stages.arguments.stages import EvaluateArguments, MergeArguments, PushToHubArguments, QuantizeArguments

__all__ = ["SftThenExportArguments"]


class SftThenExportArguments(
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

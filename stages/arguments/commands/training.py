"""The arguments of the commands that train: `SftArguments(model="org/name", dataset=["rows.jsonl"])`."""

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from stages.arguments.alignment import AlignmentArguments
from stages.arguments.base import Strings, option
from stages.arguments.export import PushToHubSwitch
from stages.arguments.generation import GenerationArguments
from stages.arguments.quantization import QuantizeOnLoadArguments
from stages.arguments.stages import DownloadArguments, PreprocessArguments, TokenizeArguments, TrainArguments
from stages.arguments.training import OutputArguments

__all__ = ["PtArguments", "RLHFArguments", "SftArguments", "TrainingArguments"]


class TrainingArguments(DownloadArguments, PreprocessArguments, TokenizeArguments, TrainArguments, OutputArguments):
    """What every command that trains has."""

    dataset: Strings = option(..., min_length=1)

    @model_validator(mode="after")
    def _settle_validation(self) -> Self:
        if self.eval_strategy == "no" and self._given("eval_strategy") and not self.val_dataset:
            self._resolve(split_dataset_ratio=0.0)
        return self


class SftArguments(TrainingArguments, GenerationArguments, QuantizeOnLoadArguments, PushToHubSwitch):
    """Supervised fine-tuning."""

    NAME: ClassVar[str] = "sft"


class PtArguments(SftArguments):
    """Pre-training: whole texts, every token learnt."""

    NAME: ClassVar[str] = "pt"

    use_chat_template: bool = option(False)
    loss_scale: Literal["default", "last_round", "all", "react", "agentflan", "alpha_umi"] = option("all")


class RLHFArguments(SftArguments, AlignmentArguments):
    """Learning from preferences."""

    NAME: ClassVar[str] = "rlhf"

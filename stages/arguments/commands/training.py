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
    def _check_rows(self) -> Self:
        if self.streaming and self.max_steps < 1:
            raise ValueError("`--streaming` does not know how many rows there are: add `--max_steps`")
        if self.streaming and self.lazy_tokenize:
            raise ValueError("`--lazy_tokenize` does not go with `--streaming`: drop one of them")
        if self.rope_scaling is not None and self.max_length is None:
            raise ValueError("`--rope_scaling` stretches positions up to `--max_length`: add it")
        if self.use_liger and self._given("loss_scale"):
            raise ValueError("`--use_liger` computes the loss itself: drop `--loss_scale`")
        return self


class SftArguments(TrainingArguments, GenerationArguments, QuantizeOnLoadArguments, PushToHubSwitch):
    """Supervised fine-tuning."""

    NAME: ClassVar[str] = "sft"

    @model_validator(mode="after")
    def _settle_validation(self) -> Self:
        if self.quant_method is not None and self.train_type == "full":
            raise ValueError("`--train_type full` cannot train quantized weights: drop `--quant_method`")
        if self.eval_strategy == "no" and self._given("eval_strategy") and not self.val_dataset:
            self._resolve(split_dataset_ratio=0.0)
        return self


class PtArguments(SftArguments):
    """Pre-training: whole texts, every token learnt."""

    NAME: ClassVar[str] = "pt"

    use_chat_template: bool = option(False)
    loss_scale: Literal["default", "last_round", "all", "react", "agentflan", "alpha_umi"] = option("all")


class RLHFArguments(SftArguments, AlignmentArguments):
    """Learning from preferences."""

    NAME: ClassVar[str] = "rlhf"

"""What the commands that train have in common."""

from typing import Self

from pydantic import model_validator

from stages.arguments.base import Strings, option
from stages.arguments.stages import DownloadArguments, PreprocessArguments, TokenizeArguments, TrainArguments
from stages.arguments.training import OutputArguments

__all__ = ["TrainingArguments"]


class TrainingArguments(DownloadArguments, PreprocessArguments, TokenizeArguments, TrainArguments, OutputArguments):
    """What every command that trains has."""

    dataset: Strings = option(..., min_length=1)

    @model_validator(mode="after")
    def _check_rows(self) -> Self:
        if self.split_dataset_ratio >= 1:
            raise ValueError("`--split_dataset_ratio 1` holds every row out: give a share below 1, or `--val_dataset`")
        if self.streaming and self.max_steps < 1:
            raise ValueError("`--streaming` does not know how many rows there are: add `--max_steps`")
        if self.streaming and self.lazy_tokenize:
            raise ValueError("`--lazy_tokenize` does not go with `--streaming`: drop one of them")
        if self.use_liger and self._given("loss_scale"):
            raise ValueError("`--use_liger` computes the loss itself: drop `--loss_scale`")
        return self

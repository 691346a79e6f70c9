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
        for flag, used in (("--streaming", self.streaming), ("--lazy_tokenize", self.lazy_tokenize)):
            if used and self.train_sampling_strategy in ("group_by_length", "batch_rebalance"):
                raise ValueError(
                    f"`--train_sampling_strategy {self.train_sampling_strategy}` needs every row's length, "
                    f"`{flag}` knows none: drop one of them"
                )
        if self.streaming and self.dataloader_num_workers > 1:
            raise ValueError(
                f"`--streaming` is read by one process: give `--dataloader_num_workers 1` instead of "
                f"{self.dataloader_num_workers}, or 0"
            )
        if self.use_liger and self._given("loss_scale"):
            raise ValueError("`--use_liger` computes the loss itself: drop `--loss_scale`")
        return self

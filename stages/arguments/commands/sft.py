"""The arguments of `martlet sft`: `SftArguments(model="org/name", dataset=["rows.jsonl"])`."""

from typing import ClassVar, Self

from pydantic import model_validator

from stages.arguments.commands.training import TrainingArguments
from stages.arguments.export import PushToHubSwitch
from stages.arguments.generation import GenerationArguments

__all__ = ["SftArguments"]


class SftArguments(TrainingArguments, GenerationArguments, PushToHubSwitch):
    """Supervised fine-tuning."""

    NAME: ClassVar[str] = "sft"

    @model_validator(mode="after")
    def _settle_validation(self) -> Self:
        if self.eval_strategy == "no" and self._given("eval_strategy") and not self.val_dataset:
            self._resolve(split_dataset_ratio=0.0)
        return self

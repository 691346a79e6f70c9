"""The arguments of `martlet eval`: `EvalArguments(model="org/name", eval_dataset=["general_qa:questions"])`."""

from typing import ClassVar, Self

from pydantic import model_validator

from stages.arguments.commands.deploy import DeployArguments
from stages.arguments.evaluation import EvaluationArguments

__all__ = ["EvalArguments"]


class EvalArguments(EvaluationArguments, DeployArguments):
    """Benchmarks for a model."""

    NAME: ClassVar[str] = "eval"

    @model_validator(mode="after")
    def _check_evaluation(self) -> Self:
        if self.eval_url is not None and (not self.model or self.api_key is None):
            raise ValueError("`--eval_url` needs `--model` (the name asked for) and `--api_key`")
        return self
